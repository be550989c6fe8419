"""Mutual exclusiveness by a regulariser: support sets that differ shall lead to weights that differ.

Pan, Rajak, Shrivastava: "Meta-Regularization by Enforcing Mutual-Exclusiveness" (2021), arXiv:2101.09819. A network
that ignores the support set adapts to every task in the same way. So the adapted weights phi_i of any two tasks i, j of
a meta-batch are kept at a distance in proportion to that of their support inputs x_i (Euclidean; no gradient is in x):
the mean of |ratio - ||phi_i - phi_j|| / ||x_i - x_j||| over all pairs is added to the training loss.

Deviations: this is the form of the authors' notebook for Omniglot, where the ratio is 4 and the weight 1. Their scripts
hold another one, of the last layers against the first, for 5 random pairs. With several devices pairs are formed on
each of them, not between them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.backbones.norm import at_least_fp32
from lightning_meta.core import Episode, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.errors import ConfigError


class MutualExclusivenessMAML(MAML):
    """MAML that is charged in training when the adapted weights of different tasks are alike.

    A meta-batch of one task has no pairs, and nothing is charged.

    Args:
        backbone, n_way: of `MAML`.
        ratio: distance to keep between the weights of two tasks, in units of the distance between their support inputs.
        weight: of the regulariser in the training loss.
        **kwargs: of `MAML`.
    """

    def __init__(
        self, backbone: Backbone, n_way: int | None = None, ratio: float = 4.0, weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(backbone, n_way, **kwargs)
        self.ratio, self.weight = ratio, weight

    def play(self, tasks: Episode) -> TaskOutput:
        adapted = self.adapt_tasks(tasks.support)
        out = self.query_tasks(adapted, tasks.query)
        if not self.training:
            return out
        phi_TP = torch.cat([adapted[name].flatten(1) for name in self.theta()], dim=1)
        apart = F.pdist(at_least_fp32(tasks.support.x.flatten(1)))  # of all T (T - 1) / 2 pairs
        differ = apart > 0  # a task that was drawn twice need not differ from itself
        kept = F.pdist(at_least_fp32(phi_TP)) / apart.where(differ, 1)

        def mean(values: Tensor) -> Tensor:
            return (values.where(differ, 0).sum() / differ.sum().clamp_min(1)).expand_as(out.loss)

        penalty = mean((self.ratio - kept).abs())
        logs = {"distance_ratio": mean(kept), "regulariser": penalty}
        return TaskOutput(out.loss + self.weight * penalty, out.preds, out.logs | logs)

    def check_variable(self, split: Split) -> None:
        if split == "train":
            raise ConfigError(
                f"{type(self).__name__} measures how far support sets are from each other, but those of train episodes "
                "vary in their size; leave train out of data.variable_splits."
            )
