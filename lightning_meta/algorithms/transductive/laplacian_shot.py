"""LaplacianShot: the nearest class mean, but queries that are neighbours shall be of one class.

Ziko, Dolz, Granger, Ben Ayed: "Laplacian Regularized Few-Shot Learning" (2020), arXiv:2006.15486.

It reads the whole query set: a prediction depends on the other queries. With squared distances `a_q` to the class means
and an affinity `w` of two queries, its assignments `y_q` (probabilities) minimise

    E(Y) = sum_q y_q . (a_q + log y_q) - 1/2 strength sum_qp w_qp y_q . y_p

by steps `y_q <- softmax(-a_q + strength sum_p w_qp y_p)`, each of which minimises a bound of E that touches it.

Deviations: the training is Baseline's, see there. `w` is 1 where two queries are among each other's nearest, 1/2 where
one is; in the authors' code it is one-sided, for which the bound is none. Class means are corrected as by BD-CSPN with
all queries, with weights that sum to 1. The strength is not chosen on validation episodes for each number of shots.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.transductive.bd_cspn import rectified
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.modules import TransductiveModule
from lightning_meta.modules.pretrained import Features


def affinities(query_QD: Tensor, neighbours: int) -> Tensor:
    """`(Q, Q)`, symmetric: 1, 1/2 or 0 as two, one or none of a pair has the other among its nearest."""
    oneself_QQ = torch.eye(len(query_QD), dtype=torch.bool, device=query_QD.device)
    distances_QQ = squared_distances(query_QD, query_QD).masked_fill(oneself_QQ, torch.inf)
    nearest_QK = distances_QQ.topk(min(neighbours, len(query_QD) - 1), largest=False).indices
    chosen_QQ = F.one_hot(nearest_QK, len(query_QD)).sum(1).to(query_QD.dtype)
    return (chosen_QQ + chosen_QQ.T) / 2


def assigned(distances_QC: Tensor, affinities_QQ: Tensor, strength: float, steps: int) -> Tensor:
    """Logarithms of the assignments `(Q, C)` after so many steps; slots at an infinite distance get none."""
    logits_QC = (-distances_QC).log_softmax(1)
    for _ in range(steps):
        logits_QC = (strength * affinities_QQ @ logits_QC.exp() - distances_QC).log_softmax(1)
    return logits_QC


class LaplacianShot(TransductiveModule):
    """Distances to class means, smoothed over neighbouring queries.

    Args:
        backbone, n_classes, features: of `PretrainedModule`.
        strength: of the tie between neighbours, the paper's lambda. With 0 it is SimpleShot, unless means are
            corrected.
        neighbours: how many others each query is tied to; the authors' `knn` counts the query itself.
        steps: of the assignments.
        rectify: correct the class means by the queries first.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        features: Features = "cl2n",
        strength: float = 0.7,
        neighbours: int = 2,
        steps: int = 20,
        rectify: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, features, **kwargs)
        self.strength, self.neighbours, self.steps, self.rectify = strength, neighbours, steps, rectify

    def transduce(self, support: Batch, query_QD: Tensor) -> Tensor:
        if self.rectify:
            means_CD, present_C = rectified(support, query_QD, pseudo=None, sharpness=10.0)
        else:
            means_CD, present_C = class_means(support.x, support.y)
        distances_QC = -exclude_absent(-squared_distances(query_QD, means_CD), present_C)
        return assigned(distances_QC, affinities(query_QD, self.neighbours), self.strength, self.steps)
