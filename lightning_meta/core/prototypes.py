"""Class means of a support set and the scores of examples against them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_means(features_SD: Tensor, labels_S: Tensor, slots: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean feature of each class, from labelled examples in any order; those with negative labels are in no class.

    The way is not known from shapes, and reading it from the labels would stop vmap and synchronise a GPU. So there are
    as many class slots `C` as support examples, an upper bound; in one-shot episodes C = N. Or `slots`, where known.

    Returns:
        means `(C, D)`, zero for slots without examples, and `present` `(C,)`, true for slots with examples.
    """
    # Not F.one_hot, which looks at values where vmap is outside of an inner gradient.
    slots_C = torch.arange(slots or len(labels_S), device=labels_S.device)
    one_hot_SC = (labels_S[:, None] == slots_C).to(features_SD.dtype)
    counts_C = one_hot_SC.sum(0)
    return (one_hot_SC.T @ features_SD) / counts_C.clamp_min(1)[:, None], counts_C > 0


def exclude_absent(logits_QC: Tensor, present_C: Tensor) -> Tensor:
    """Give class slots without support examples probability zero."""
    return torch.where(present_C, logits_QC, -torch.inf)


def squared_distances(a_QD: Tensor, b_CD: Tensor) -> Tensor:
    """Squared Euclidean distances `(Q, C)`, as `|a|^2 - 2ab + |b|^2`: one matrix product, differentiable twice."""
    return a_QD.square().sum(1)[:, None] - 2 * a_QD @ b_CD.T + b_CD.square().sum(1)


def cosine_similarities(a_QD: Tensor, b_CD: Tensor) -> Tensor:
    """Cosines `(Q, C)` of the angles between the rows of `a` and of `b`."""
    return F.normalize(a_QD, dim=1) @ F.normalize(b_CD, dim=1).T
