"""Recurrent cells in plain operations: the fused ones have no second derivative."""

import torch
from torch import Tensor, nn

LSTMState = tuple[Tensor, Tensor]


def open_gates(bias: nn.Parameter, hidden: int, keep: float) -> None:
    """Add to the bias of the gates that keep the state, which are the second ones of GRUs and LSTMs (forget gates)."""
    with torch.no_grad():
        bias[hidden : 2 * hidden] += keep


class LSTMCell(nn.Module):
    """One step of an LSTM. Its parameters have the names, shapes, order of gates and initial values of `nn.LSTMCell`'s.

    Shape letters: `B` examples (one axis or more), `I` inputs, `H` hidden units, `L` length of a sequence.
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        bound = hidden**-0.5
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, in_features).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden).uniform_(-bound, bound))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden).uniform_(-bound, bound))

    def zero_state(self, x_BI: Tensor) -> LSTMState:
        """Where a sequence starts that has `x_BI` among its inputs: hidden and cell state `(B, H)` of zeros."""
        zeros_BH = x_BI.new_zeros(*x_BI.shape[:-1], self.hidden)
        return zeros_BH, zeros_BH

    def forward(self, x_BI: Tensor, state: LSTMState) -> LSTMState:
        """The next hidden and cell state, each `(B, H)`."""
        h_BH, c_BH = state
        weight = torch.cat([self.weight_ih, self.weight_hh], dim=1)
        # Units before examples: each gate is contiguous, which makes its nonlinearity up to 3 times as fast.
        gates = weight @ torch.cat([x_BI.mT, h_BH.mT], dim=-2) + (self.bias_ih + self.bias_hh)[:, None]
        input_BH, forget_BH, candidate_BH, output_BH = (gate.mT for gate in gates.chunk(4, dim=-2))
        c_BH = forget_BH.sigmoid() * c_BH + input_BH.sigmoid() * candidate_BH.tanh()
        return output_BH.sigmoid() * c_BH.tanh(), c_BH

    def unroll(self, x_LBI: Tensor) -> Tensor:
        """The hidden states `(L, B, H)` after each input of a sequence that is read from a state of zeros."""
        state = self.zero_state(x_LBI[0])
        hidden: list[Tensor] = []
        for x_BI in x_LBI:
            state = self(x_BI, state)
            hidden.append(state[0])
        return torch.stack(hidden)


class GRUCell(nn.Module):
    """One step of a GRU, as `nn.GRUCell` has it; its two linear maps start as `nn.Linear` does.

    Args:
        in_features: numbers that it reads.
        hidden: units.
        keep: added to the bias of the gates that keep the state, in an LSTM the forget gates. The cell starts with a
            memory of some 1 / (1 - sigmoid(keep)) steps: 2 at 0, 8 at 2.
    """

    def __init__(self, in_features: int, hidden: int, keep: float = 0.0) -> None:
        super().__init__()
        self.inputs = nn.Linear(in_features, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        open_gates(self.inputs.bias, hidden, keep)

    def zero_state(self, x_BI: Tensor) -> Tensor:
        """Where a sequence starts that has `x_BI` among its inputs: `(B, H)` of zeros."""
        return x_BI.new_zeros(*x_BI.shape[:-1], self.recurrent.in_features)

    def forward(self, x_BI: Tensor, h_BH: Tensor) -> Tensor:
        """The next hidden state `(B, H)`."""
        reset, update, new = self.inputs(x_BI).chunk(3, dim=-1)
        reset_by_state, update_by_state, new_by_state = self.recurrent(h_BH).chunk(3, dim=-1)
        kept_BH = torch.sigmoid(update + update_by_state)
        return kept_BH * h_BH + (1 - kept_BH) * torch.tanh(new + torch.sigmoid(reset + reset_by_state) * new_by_state)

    def unroll(self, x_LBI: Tensor) -> Tensor:
        """The hidden states `(L, B, H)` after each input of a sequence that is read from a state of zeros."""
        hidden = [self.zero_state(x_LBI[0])]
        for x_BI in x_LBI:
            hidden.append(self(x_BI, hidden[-1]))
        return torch.stack(hidden[1:])
