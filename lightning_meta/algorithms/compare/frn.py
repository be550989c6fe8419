"""FRN: classify an image by how well the feature maps of each class reconstruct its own, in closed form.

Wertheimer, Tang, Hariharan: "Few-Shot Classification with Feature Map Reconstruction Networks" (2021),
arXiv:2012.01506.

Every place of a query's map is written as a weighted sum of the descriptors of a class, by ridge regression.

As in the authors' code, descriptors are kept apart after their lengths are divided by that of the whole support set; in
the paper each has length 1, with which this penalty would be far larger than the loss.

Deviations: the authors' code keeps the first class apart from itself too. No pre-training, in which they classify all
training classes by reconstruction.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors, map_shape
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.modules import EmbeddingModule


class Reconstructors(NamedTuple):
    """Of each class, the matrix `(D, D)` whose product with a query's, `X'X`, is its squared error of reconstruction.

    With them which class slots have one, and how much the descriptors of different classes overlap.
    """

    errors: Tensor
    present: Tensor
    overlap: Tensor


class FRN(EmbeddingModule[Reconstructors]):
    """Logits are negative mean squared errors of reconstruction, at a learned temperature.

    Shapes: `M` places of a map, `D` channels; the rest as in `core/episode.py`. The penalty of the ridge regression and
    a factor on reconstructions are learned too. The way is read from the episode, so it may differ between training and
    testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` if it has one (see
            `Conv4`), otherwise as maps of one pixel.
        overlap_weight: in training, of the squared products between descriptors of different classes.
        factor: on descriptors. The authors' is 1 for a Conv4, and `640 ** -0.5` for the 640 channels of a ResNet-12.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, overlap_weight: float = 0.03, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.overlap_weight, self.factor, self.map_shape = overlap_weight, factor, map_shape(self.backbone)
        self.alpha, self.beta = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def descriptors(self, features_BX: Tensor) -> Tensor:
        """`(B, M, D)`"""
        return self.factor * descriptors(features_BX, self.map_shape)

    def adapt_head(self, support: Batch) -> Reconstructors:
        """With all descriptors of a class as the rows of X: `W = e^beta (X'X + penalty I)^-1 X'X`.

        A query Z is reconstructed as `ZW`, with the squared error `|Z - ZW|^2 = <Z'Z, (I - W)(I - W)'>`.
        """
        x_SMD = self.descriptors(support.x)
        one_hot_SC = F.one_hot(support.y, len(support.y)).double()
        gram_CDD = torch.einsum("sc,sde->cde", one_hot_SC, gram(x_SMD.double()))
        places, channels = x_SMD.shape[1:]
        penalty_C = one_hot_SC.sum(0).clamp_min(1) * places / channels * self.alpha.exp()
        identity_DD = torch.eye(channels, dtype=gram_CDD.dtype, device=gram_CDD.device)
        # solve_ex: solve would wait for the GPU to see whether the matrix is singular.
        solved_CDD = torch.linalg.solve_ex(gram_CDD + penalty_C[:, None, None] * identity_DD, gram_CDD).result
        left_CDD = identity_DD - self.beta.exp() * solved_CDD
        errors_CDD = (left_CDD @ left_CDD.mT).to(x_SMD.dtype)
        return Reconstructors(errors_CDD, one_hot_SC.any(0), overlap_of_classes(gram_CDD).to(x_SMD.dtype))

    def head_loss(self, classes: Reconstructors, query: Batch) -> TaskOutput:
        """In training with the penalty, in evaluation the plain loss."""
        x_QMD = self.descriptors(query.x)
        errors_QC = torch.einsum("qde,cde->qc", gram(x_QMD), classes.errors) / x_QMD.shape[1]
        logits_QC = exclude_absent(-self.scale * errors_QC, classes.present)
        loss = F.cross_entropy(logits_QC, query.y)
        if self.training:
            loss = loss + self.overlap_weight * classes.overlap
        return TaskOutput(loss, logits_QC, {"overlap": classes.overlap})


def gram(x_BMD: Tensor) -> Tensor:
    """`X'X`, `(B, D, D)`."""
    return x_BMD.mT @ x_BMD


def overlap_of_classes(gram_CDD: Tensor) -> Tensor:
    """Of a support set of length 1: the squared products of all pairs of descriptors of different classes, summed.

    That of two classes is `<X'X, Y'Y>`; so of all pairs it is what the square of the sum has beyond the squares.
    """
    squared_length = gram_CDD.diagonal(dim1=1, dim2=2).sum()
    return (gram_CDD.sum(0).square().sum() - gram_CDD.square().sum()) / (2 * squared_length.square())
