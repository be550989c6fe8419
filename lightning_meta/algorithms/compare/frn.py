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
    """Of each class, the matrix `(D, D)` that turns a descriptor into its reconstruction; which class slots have one.

    With them how much the descriptors of different classes overlap.
    """

    matrices: Tensor
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
        """With all descriptors of a class as the rows of X: `e^beta (X'X + penalty I)^-1 X'X`."""
        x_SMD = self.descriptors(support.x)
        one_hot_SC = F.one_hot(support.y, len(support.y)).double()
        gram_SDD = (x_SMD.mT @ x_SMD).double()
        gram_CDD = torch.einsum("sc,sde->cde", one_hot_SC, gram_SDD)
        places, channels = x_SMD.shape[1:]
        penalty_C = one_hot_SC.sum(0).clamp_min(1) * places / channels * self.alpha.exp()
        ridge_CDD = penalty_C[:, None, None] * torch.eye(channels, dtype=gram_CDD.dtype, device=gram_CDD.device)
        # solve_ex: solve would wait for the GPU to see whether the matrix is singular.
        matrices_CDD = torch.linalg.solve_ex(gram_CDD + ridge_CDD, gram_CDD).result.to(x_SMD.dtype)
        overlap = overlap_of_classes(x_SMD, support.y)
        return Reconstructors(self.beta.exp() * matrices_CDD, one_hot_SC.any(0), overlap)

    def head_loss(self, classes: Reconstructors, query: Batch) -> TaskOutput:
        """In training with the penalty, in evaluation the plain loss."""
        x_QMD = self.descriptors(query.x)
        reconstructed_QCMD = torch.einsum("qmd,cde->qcme", x_QMD, classes.matrices)
        errors_QC = (reconstructed_QCMD - x_QMD[:, None]).square().sum(-1).mean(-1)
        logits_QC = exclude_absent(-self.scale * errors_QC, classes.present)
        loss = F.cross_entropy(logits_QC, query.y)
        if self.training:
            loss = loss + self.overlap_weight * classes.overlap
        return TaskOutput(loss, logits_QC, {"overlap": classes.overlap})


def overlap_of_classes(descriptors_SMD: Tensor, labels_S: Tensor) -> Tensor:
    """Of a support set of length 1: the squared products of all pairs of descriptors of different classes, summed."""
    x_SMD = descriptors_SMD / descriptors_SMD.norm()
    products_SMSM = torch.einsum("smd,tnd->smtn", x_SMD, x_SMD)
    differ_SS = labels_S[:, None] != labels_S
    return (products_SMSM.square().sum((1, 3)) * differ_SS).sum() / 2
