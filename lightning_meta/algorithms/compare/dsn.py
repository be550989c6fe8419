"""DSN: classify a query by its distance to the subspace that the examples of each class span.

Simon, Koniusz, Nock, Harandi: "Adaptive Subspaces for Few-Shot Learning" (2020), CVPR (Deep Subspace Networks).

The subspace of a class goes through its mean and has K - 1 dimensions, all that K examples span, as in the authors'
code. So the projection needs no singular vectors, whose derivatives are infinite where two singular values are equal.

Deviations: distances are squared, as in the paper's text; in its code for Conv4 they are not. An only example spans
nothing, so that in one-shot episodes DSN is a Prototypical Network; the authors add the image's mirror image.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.modules import EmbeddingModule

JITTER = 1e-9  # on Gram matrices: two equal examples of a class would make them singular


class Subspaces(NamedTuple):
    """Subspaces of the classes: their means `(C, D)`, which class slots have one `(C,)`, and what spans them.

    Each support example's difference from the mean of its class `(S, D)`, the inverse Gram matrix of the differences
    within each class `(S, S)`, zero between classes, both in float64; and the labels `(S,)`. With them the overlap of
    the subspaces.
    """

    means: Tensor
    present: Tensor
    spans: Tensor
    inverse: Tensor
    labels: Tensor
    overlap: Tensor


class DSN(EmbeddingModule[Subspaces]):
    """Logits are negative squared distances to the classes' affine subspaces.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding.
        overlap_weight: in training, of the overlap of the classes' subspaces: the squared cosines of their principal
            angles, summed over all pairs of classes in both orders (the paper's lambda).
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, overlap_weight: float = 0.03, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.overlap_weight = overlap_weight

    def adapt_head(self, support: Batch) -> Subspaces:
        means_CD, present_C = class_means(support.x, support.y)
        spans_SD = support.x.double() - means_CD.double()[support.y]
        gram_SS = spans_SD @ spans_SD.T
        same_SS = (support.y[:, None] == support.y).to(gram_SS.dtype)
        # The differences of a class sum to zero. Ones within classes fill up this direction, in which nothing lies.
        eye_SS = torch.eye(len(gram_SS), dtype=gram_SS.dtype, device=gram_SS.device)
        # inv_ex: inv would wait for the GPU to see whether the matrix is singular.
        inverse_SS = torch.linalg.inv_ex(gram_SS * same_SS + same_SS + JITTER * eye_SS).inverse
        # trace(P_i P_j) of the projections P = X' inverse X, over all i and j; and those of i = j left out.
        coefficients_SS = inverse_SS @ gram_SS
        overlap = (coefficients_SS * coefficients_SS.T * (1 - same_SS)).sum()
        return Subspaces(means_CD, present_C, spans_SD, inverse_SS, support.y, overlap.to(support.x.dtype))

    def head_loss(self, classes: Subspaces, query: Batch) -> TaskOutput:
        """In training with the overlap, in evaluation the plain loss."""
        # By Pythagoras: the distance to the mean, without the part of it that lies in the subspace.
        within_QS = query.x.double() @ classes.spans.T - (classes.means[classes.labels] * classes.spans).sum(1)
        lengths_QS = (within_QS @ classes.inverse * within_QS).to(query.x.dtype)
        belongs_SC = F.one_hot(classes.labels, len(classes.labels)).to(lengths_QS.dtype)
        logits_QC = lengths_QS @ belongs_SC - squared_distances(query.x, classes.means)
        logits_QC = exclude_absent(logits_QC, classes.present)
        loss = F.cross_entropy(logits_QC, query.y)
        if self.training:
            loss = loss + self.overlap_weight * classes.overlap
        return TaskOutput(loss, logits_QC, {"overlap": classes.overlap})
