"""ENAS: a policy proposes cells, which are judged with weights that all of them share.

Pham, Guan, Zoph, Le, Dean: "Efficient Neural Architecture Search via Parameter Sharing" (2018), arXiv:1802.03268.

In an outer update one proposed cell is trained, and the policy learns by REINFORCE from the accuracy of others on the
held-out examples.

Deviations: edges choose independently, within the budget, in place of an LSTM; the baseline is the mean reward of the
other proposals in place of a moving average, without a bonus for entropy; weights and policy take turns at every step;
the most likely cell is found, not the best of some samples.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Cell
from lightning_meta.core import Batch, FirstOrder, Hypergradient, Params, TaskOutput
from lightning_meta.core.architectures import leave_one_out, log_probabilities, one_of
from lightning_meta.datamodules.bilevel.trials import Trial
from lightning_meta.errors import require_at_least
from lightning_meta.modules.architecture_search import ArchitectureModule


class ENAS(ArchitectureModule):
    """Logits of a policy, and shared weights.

    Args:
        backbone, n_classes: of `ArchitectureModule`.
        samples: cells that are judged in an outer update, at least 2.
        hypergradient: a cell that was sampled does not move with the logits, so there is nothing to gain but by
            `FirstOrder`.
        **kwargs: of `ArchitectureModule`; `optimizer` is that of the policy.
    """

    def __init__(
        self,
        backbone: Cell,
        n_classes: int = 10,
        samples: int = 10,
        hypergradient: Hypergradient = FirstOrder(),  # noqa: B008 - never mutated
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, hypergradient=hypergradient, **kwargs)
        require_at_least(2, samples=samples)
        self.logits_EO = nn.Parameter(torch.zeros_like(self.cell.mixture_EO))
        self.turn: Tensor  # outer updates that have been taken
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))
        self.dice_N: Tensor  # of the outer update at hand: of the cell that is trained, then of those that are judged
        self.register_buffer("dice_N", torch.full((1 + samples,), 0.5, dtype=torch.float64), persistent=False)

    def log_probabilities(self) -> Tensor:
        return log_probabilities(self.logits_EO, self.cell.cells_KE)

    def operations(self) -> Tensor:
        p_K = self.log_probabilities().exp()
        return (p_K[:, None, None] * self.cell.one_hot(self.cell.cells_KE)).sum(0)

    def chosen(self) -> Tensor:
        return self.cell.cells_KE[self.log_probabilities().argmax()]

    def sampled(self) -> Tensor:
        """Places of the cells of the outer update at hand among all cells, `(1 + samples,)`."""
        p_K = self.log_probabilities().detach().exp()
        return one_of(p_K.expand(len(self.dice_N), -1), self.dice_N)

    def mixture(self) -> Tensor:
        return self.cell.one_hot(self.cell.cells_KE[self.sampled()[0]]) if self.training else super().mixture()

    def query_loss(self, weights: Params, query: Batch) -> TaskOutput:
        if not self.training:
            return super().query_loss(weights, query)
        constant = {name: value.detach() for name, value in weights.items()}
        places_N = self.sampled()[1:]
        mixtures_NEO = self.cell.one_hot(self.cell.cells_KE[places_N])
        logits_NQC = torch.stack([self.logits_of(mixture_EO, constant, query.x) for mixture_EO in mixtures_NEO])
        rewards_N = (logits_NQC.argmax(-1) == query.y).to(logits_NQC.dtype).mean(1)
        loss = -(leave_one_out(rewards_N) * self.log_probabilities()[places_N]).mean()
        return TaskOutput(loss, logits_NQC[0], {"cross_entropy": F.cross_entropy(logits_NQC[0], query.y)})

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.training:
            self.dice_N.copy_(self.dice(self.turn[None], len(self.dice_N))[0])
        return super().measure(tasks)

    @torch.no_grad()
    def settle(self) -> None:
        super().settle()
        self.turn += 1
