"""DeepBDC: represent an image by the Brownian distance covariance of its channels.

Xie, Long, Lv, Wang, Li: "Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot Classification"
(2022), arXiv:2204.04567. This is their Meta DeepBDC, which is trained on episodes.

Two channels are as far from one another as their values at all places of the feature map. These distances, less the
means of their row and column, are the representation; the inner product of two of them is the (squared, and scaled)
distance covariance of two images, which sees dependence of any kind. A class is the mean of its examples.

Deviations: no layer that reduces the channels before, which networks of 640 of them need. The whole symmetric matrix
counts, as in the paper's metric; the authors' code takes the upper triangle. No pre-training.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors, map_shape
from lightning_meta.algorithms.compare.protonet import Prototypes
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule

EPS = 1e-5  # under the root of a squared distance, whose slope at zero would be infinite


class DeepBDC(EmbeddingModule[Prototypes]):
    """Nearest class mean of distance matrices between channels.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` (see `Conv4`).
        similarity: `inner`, the product with a class's matrix (the paper's for one shot), or `euclidean`, the negative
            squared distance to it (for several).
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, similarity: Literal["inner", "euclidean"] = "inner", **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.similarity, self.map_shape = similarity, map_shape(self.backbone)
        if self.map_shape[0] < 3:
            raise ConfigError(f"distances between {self.map_shape[0]} channels say nothing; take at least 3.")
        # Of squared distances, which grow with the number of places.
        self.log_scale = nn.Parameter(-torch.tensor(2.0 * self.map_shape[1] * self.map_shape[2]).log())

    def represent(self, features_BX: Tensor) -> Tensor:
        """Distance matrices of the channels, centred twice and flattened, `(B, D * D)`."""
        return centred_distances(descriptors(features_BX, self.map_shape), self.log_scale.exp()).flatten(1)

    def adapt_head(self, support: Batch) -> Prototypes:
        return Prototypes(*class_means(self.represent(support.x), support.y))

    def head_loss(self, prototypes: Prototypes, query: Batch) -> TaskOutput:
        query_QX = self.represent(query.x)
        if self.similarity == "inner":
            logits_QC = query_QX @ prototypes.means.T
        else:
            logits_QC = -squared_distances(query_QX, prototypes.means)
        logits_QC = exclude_absent(logits_QC, prototypes.present)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)


def centred_distances(x_BMD: Tensor, scale: Tensor) -> Tensor:
    """Distances `(B, D, D)` between the columns of M observations, so shifted that all rows and columns sum to zero.

    Args:
        x_BMD: observations.
        scale: of the squared distances.
    """
    gram_BDD = x_BMD.mT @ x_BMD
    squares_BD = gram_BDD.diagonal(dim1=-2, dim2=-1)
    squared_BDD = (squares_BD[:, :, None] - 2 * gram_BDD + squares_BD[:, None]).clamp_min(0)
    distances_BDD = (scale * squared_BDD + EPS).sqrt()
    rows = distances_BDD.mean(-1, keepdim=True)
    return distances_BDD - rows - rows.mT + rows.mean(-2, keepdim=True)
