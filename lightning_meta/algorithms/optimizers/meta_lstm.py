"""Meta-LSTM: learn the initialisation and, as the gates of an LSTM, the update rule that starts from it.

Ravi, Larochelle: "Optimization as a Model for Few-Shot Learning" (2017), ICLR, https://openreview.net/forum?id=rJY0-Kcll.

The update of a cell state, `c_t = f_t * c_{t-1} + i_t * candidate_t`, is gradient descent when the cell state is the
learner's weights, the candidate is minus their gradient, the forget gate f is 1 and the input gate i is the step size.
Both gates are learned, for every coordinate from its gradient, the loss, its weight and the gates before; so is the
first cell state, theta.

Where the paper leaves it open this is the authors' code: a gate's value of the step before enters as it was before its
sigmoid, 0 in the first step; all weights start within 0.01 around zero. Like theirs, learners are normalised by the
batch at hand in meta-training, and by statistics of the support set in evaluation, so nothing is carried from one task
to another; that is the norm protocol `inductive` here (`transductive`: by the batch at hand in evaluation too).

Deviations: the two gates' biases start at fixed values, in the authors' code drawn from [4, 5] and [-5, -4]. In
evaluation the support's statistics are those under the final weights; in the authors' code an average over the inner
steps, the last one weighing 0.9. A gradient is that of the mean loss.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.backbones.recurrent import LSTMCell, LSTMState
from lightning_meta.core import Batch, Params
from lightning_meta.core.preprocessing import log_and_sign
from lightning_meta.errors import ConfigError


class MetaLSTM(MAML):
    """MAML whose inner loop is a learned optimizer with two gates for each weight.

    Args:
        backbone, n_way: of `MAML`.
        inner_lr: about the step size before training, the first input gate; within 0 and 1. The authors': 0.007..0.018.
        inner_steps: adaptation steps in training. The authors take 12 for one shot.
        first_order: treat gradients and losses of the learner as constants, the paper's assumption (section 3.2).
        hidden: units of the LSTM that reads gradient and loss.
        forget_bias: what the forget gate starts from, before its sigmoid.
        **kwargs: of `MAML`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 12,
        first_order: bool = True,
        hidden: int = 20,
        forget_bias: float = 5.0,
        **kwargs: Any,
    ) -> None:
        if not 0 < inner_lr < 1:
            raise ConfigError(f"inner_lr={inner_lr} must lie between 0 and 1: it is the value of a gate.")
        gates = partial(GatedUpdate, hidden=hidden, forget_bias=forget_bias)
        super().__init__(
            backbone, n_way, inner_lr, inner_steps, first_order=first_order, inner_optimizer=gates, **kwargs
        )

    def adapt(self, support: Batch) -> Params:
        """Fast weights phi; in evaluation with the support's statistics where the norm protocol asks for them."""
        phi = super().adapt(support)
        return {name: phi[name] for name in self.theta()} if self.training else phi


class GateState(NamedTuple):
    """Of each of `P` coordinates: state of the LSTM `(P, H)`, forget and input gate before their sigmoid `(2, P)`."""

    lstm: LSTMState
    gates: Tensor


class GatedUpdate(nn.Module):
    """The paper's meta-learner, `phi <- f * phi - i * grad`, with one set of weights for all coordinates.

    Args:
        lr: value of the input gate before training, but for the small weights of its inputs.
        hidden: units of the LSTM.
        forget_bias: of the forget gate.
    """

    def __init__(self, lr: float, hidden: int = 20, forget_bias: float = 5.0) -> None:
        super().__init__()
        self.lstm = LSTMCell(4, hidden)
        self.gates = nn.Linear(hidden, 2)  # forget gate, input gate
        self.from_value, self.from_gate = nn.Parameter(torch.empty(2)), nn.Parameter(torch.empty(2))
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.01, 0.01)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor([forget_bias, math.log(lr / (1 - lr))]))

    def init(self, params: Params) -> GateState:
        zeros_2P = torch.zeros_like(flatten(params)).expand(2, -1)
        return GateState(self.lstm.zero_state(zeros_2P.mT), zeros_2P)

    def update(self, grads: Params, state: GateState, params: Params, loss: Tensor) -> tuple[Params, GateState]:
        phi_P, grad_P = flatten(params), flatten(grads)
        seen_P4 = torch.cat([log_and_sign(grad_P), log_and_sign(loss).expand(len(grad_P), 2)], dim=1)
        hidden_PH, cell_PH = self.lstm(seen_P4, state.lstm)
        seen_2P = self.from_value[:, None] * phi_P + self.from_gate[:, None] * state.gates
        gates_2P = self.gates.weight @ hidden_PH.mT + self.gates.bias[:, None] + seen_2P
        forget_P, input_P = gates_2P.sigmoid()
        parts = (forget_P * phi_P - input_P * grad_P).split([value.numel() for value in params.values()])
        moved = {name: part.view_as(params[name]) for name, part in zip(params, parts, strict=True)}
        return moved, GateState((hidden_PH, cell_PH), gates_2P)


def flatten(params: Params) -> Tensor:
    """All coordinates `(P,)`, in the order of the names."""
    return torch.cat([value.reshape(-1) for value in params.values()])
