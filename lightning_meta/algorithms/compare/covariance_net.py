"""CovaMNet: compare the local descriptors of a query with the covariance of each class's descriptors.

Li, Xu, Huo, Wang, Gao, Luo: "Distribution Consistency Based Covariance Metric Networks for Few-Shot Learning" (2019),
AAAI.

A descriptor q of the query, less the mean of its image, has the score `q' C q` with the covariance C of a class: the
more it varies where the class does, the higher. A learned weight for each place of the map adds them up.

Deviations: the backbone's rectifiers are not leaky. No rectifier follows the scores, which are never negative.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors, map_shape
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule


class Covariances(NamedTuple):
    """Of each class, the covariance matrix `(D, D)` of its descriptors; which class slots have one `(C,)`."""

    matrices: Tensor
    present: Tensor


class CovaMNet(EmbeddingModule[Covariances]):
    """Logits are weighted sums, over the places of a query's map, of its descriptors' covariance scores.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` (see `Conv4`), which
            must have more than one place.
        dropout: probability of dropping a score.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.map_shape = map_shape(self.backbone)
        if self.map_shape[1] * self.map_shape[2] < 2:
            raise ConfigError(
                "CovaMNet compares how descriptors vary over the places of a map, but the maps of "
                f"{type(self.backbone).__name__} have one place; take larger maps, such as Conv4 with halvings=2."
            )
        self.dropout = nn.Dropout(dropout)
        self.place_weights = nn.Parameter(0.02 * torch.randn(self.map_shape[1] * self.map_shape[2]))

    def adapt_head(self, support: Batch) -> Covariances:
        x_SMD = descriptors(support.x, self.map_shape)
        means_CD, present_C = class_means(x_SMD.mean(1), support.y)
        centred_SMD = x_SMD - means_CD[support.y][:, None]
        one_hot_SC = F.one_hot(support.y, len(support.y)).to(x_SMD.dtype)
        scatter_CDD = torch.einsum("sc,smd,sme->cde", one_hot_SC, centred_SMD, centred_SMD)
        counts_C = one_hot_SC.sum(0) * x_SMD.shape[1]
        return Covariances(scatter_CDD / (counts_C - 1).clamp_min(1)[:, None, None], present_C)

    def head_loss(self, classes: Covariances, query: Batch) -> TaskOutput:
        x_QMD = descriptors(query.x, self.map_shape)
        centred_QMD = x_QMD - x_QMD.mean(1, keepdim=True)
        scores_QCM = torch.einsum("qmd,cde,qme->qcm", centred_QMD, classes.matrices, centred_QMD)
        logits_QC = exclude_absent(self.dropout(scores_QCM) @ self.place_weights, classes.present)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
