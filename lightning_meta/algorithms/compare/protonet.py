"""Prototypical Networks: classify a query by its nearest class mean in a learned embedding.

Snell, Swersky, Zemel: "Prototypical Networks for Few-shot Learning" (2017), arXiv:1703.05175.

Deviations: none where normalisation is `running`, as in the configs: support and query are embedded in one pass, as in
the authors' code. The cosine variant scales similarities by a learned temperature; the paper's has none and is worse.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means, cosine_similarities, exclude_absent, squared_distances
from lightning_meta.modules import EmbeddingModule


class Prototypes(NamedTuple):
    """Class means `(C, D)`, and which class slots have one `(C,)`."""

    means: Tensor
    present: Tensor


class ProtoNet(EmbeddingModule[Prototypes]):
    """Class prototypes from the support set; logits are negative squared distances (or scaled cosines) to them.

    The way is read from the episode, so training may use more classes than testing (60 against 5 in the paper).

    Args:
        backbone: the embedding.
        distance: `euclidean` (squared; the paper's choice) or `cosine`.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self, backbone: Backbone, distance: Literal["euclidean", "cosine"] = "euclidean", **kwargs: Any
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.distance = distance
        if distance == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def adapt_head(self, support: Batch) -> Prototypes:
        return Prototypes(*class_means(support.x, support.y))

    def head_loss(self, prototypes: Prototypes, query: Batch) -> TaskOutput:
        logits_QC = self.logits(prototypes, query.x)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)

    def logits(self, prototypes: Prototypes, features_QD: Tensor) -> Tensor:
        """Of class slots `(Q, C)`."""
        if self.distance == "euclidean":
            logits_QC = -squared_distances(features_QD, prototypes.means)
        else:
            logits_QC = self.log_scale.exp() * cosine_similarities(features_QD, prototypes.means)
        return exclude_absent(logits_QC, prototypes.present)
