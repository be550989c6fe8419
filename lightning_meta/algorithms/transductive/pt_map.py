"""PT-MAP: features are made more normal by a power, and queries are shared out among the classes by optimal transport.

Hu, Gripon, Pateux: "Leveraging the Feature Distribution in Transfer-based Few-Shot Learning" (2020), arXiv:2006.03806.

It reads the whole query set: a prediction depends on the other queries. It takes for granted that all classes have
equally many, Q / N of Q queries: where they have not, it is wrong for the rest, however sure it could be.

Deviations: the training is Baseline's, see there. Features are not reduced by a QR decomposition, which turns them and
changes no distance. Sinkhorn's algorithm takes a fixed number of steps, on logarithms.
"""

from math import log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch
from lightning_meta.core.prototypes import class_means, squared_distances
from lightning_meta.modules import TransductiveModule


def transported(affinities_QC: Tensor, present_C: Tensor, steps: int) -> Tensor:
    """Logarithms of a plan `(Q, C)` that is `exp(affinity)` times a factor for each row and one for each column.

    Its rows sum to 1, and its columns, once the steps have converged, to as much as each other. Slots of absent classes
    get nothing.
    """
    affinities_QC = torch.where(present_C, affinities_QC, -torch.inf)
    share = log(len(affinities_QC)) - present_C.sum().to(affinities_QC.dtype).log()
    column_C = torch.zeros_like(affinities_QC[0])
    for _ in range(steps):
        row_Q1 = -(affinities_QC + column_C).logsumexp(1, keepdim=True)
        column_C = torch.where(present_C, share - (affinities_QC + row_Q1).logsumexp(0), 0)
    return (affinities_QC + column_C).log_softmax(1)


class PTMAP(TransductiveModule):
    """Class means that move to the queries which they are given, in turns with the sharing out.

    Args:
        backbone, n_classes: of `PretrainedModule`. Features are to be no less than zero, as after a ReLU.
        power: of the features.
        sharpness: a query's affinity to a class is minus this times the squared distance to its mean; the paper's
            lambda.
        steps, inner_lr: how often class means move, and which part of the way they go.
        transport_steps: of Sinkhorn's algorithm.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        power: float = 0.5,
        sharpness: float = 10.0,
        steps: int = 20,
        inner_lr: float = 0.2,
        transport_steps: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.power, self.sharpness, self.steps, self.inner_lr = power, sharpness, steps, inner_lr
        self.transport_steps = transport_steps

    def made_normal(self, features_BD: Tensor) -> Tensor:
        """A power of features, at length one, centred, and at length one again."""
        powers_BD = F.normalize((features_BD.relu() + 1e-6).pow(self.power), dim=1)
        return F.normalize(powers_BD - powers_BD.mean(0), dim=1)

    def transduce(self, support: Batch, query_QD: Tensor) -> Tensor:
        support_SD, query_QD = self.made_normal(support.x), self.made_normal(query_QD)
        means_CD, present_C = class_means(support_SD, support.y)
        given_SC = F.one_hot(support.y, len(means_CD)).to(means_CD.dtype)
        examples_MD = torch.cat([support_SD, query_QD])
        for _ in range(self.steps):
            plan_MC = torch.cat([given_SC, self.shared_out(query_QD, means_CD, present_C).exp()])
            total_C = torch.where(present_C, plan_MC.sum(0), 1)
            means_CD = means_CD + self.inner_lr * ((plan_MC.T @ examples_MD) / total_C[:, None] - means_CD)
        return self.shared_out(query_QD, means_CD, present_C)

    def shared_out(self, query_QD: Tensor, means_CD: Tensor, present_C: Tensor) -> Tensor:
        """Logarithms of the plan for these class means."""
        affinities_QC = -self.sharpness * squared_distances(query_QD, means_CD)
        return transported(affinities_QC, present_C, self.transport_steps)
