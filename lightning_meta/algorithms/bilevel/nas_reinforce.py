"""Architecture search by REINFORCE: a policy proposes cells, each of which is trained from its beginning.

Zoph and Le: "Neural Architecture Search with Reinforcement Learning" (2017), arXiv:1611.01578.

Deviations: edges choose independently, within the budget, in place of an LSTM; the baseline is the mean reward of the
other cells of an outer update in place of a moving average; the reward is the accuracy, not its cube; the cells of an
outer update are trained beside each other, and there are no parameter servers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.backbones import Cell
from lightning_meta.core.architectures import leave_one_out, log_probabilities, one_of
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.modules.architecture_search import ChildrenModule


class NASReinforce(ChildrenModule):
    """Logits of a policy over cells; `data.meta_batch_size` cells are proposed and trained in an outer update.

    Args:
        backbone, n_classes: of `ChildrenModule`.
        **kwargs: of `ChildrenModule`; `optimizer` is that of the policy.
    """

    def __init__(self, backbone: Cell, n_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.logits_EO = nn.Parameter(torch.zeros_like(self.cell.mixture_EO))

    def log_probabilities(self) -> Tensor:
        return log_probabilities(self.logits_EO, self.cell.cells_KE)

    def operations(self) -> Tensor:
        p_K = self.log_probabilities().exp()
        return (p_K[:, None, None] * self.cell.one_hot(self.cell.cells_KE)).sum(0)

    def proposed(self, numbers_N: Tensor) -> Tensor:
        p_K = self.log_probabilities().detach().exp()
        return self.cell.cells_KE[one_of(p_K.expand(len(numbers_N), -1), self.dice(numbers_N, 1)[:, 0])]

    def losses_of_search(self, cells_NE: Tensor, rewards_N: Tensor) -> Tensor:
        places_N = (cells_NE[:, None] == self.cell.cells_KE).all(-1).long().argmax(1)
        return -leave_one_out(rewards_N).to(self.logits_EO) * self.log_probabilities()[places_N]

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if data.meta_batch_size < 2:
            raise ConfigError(
                f"meta_batch_size={data.meta_batch_size}, but a cell is judged against the others of an outer update; "
                "set data.meta_batch_size to 2 or more."
            )
