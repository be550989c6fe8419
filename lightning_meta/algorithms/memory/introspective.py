"""The self-referential weight matrix of 1993: a network that sees its errors, and reads and changes its own weights.

Schmidhuber: "A 'Self-Referential' Weight Matrix" (1993), International Conference on Artificial Neural Networks.

Every connection has an address of bits. Some output units spell one, and the weight of that connection is an input at
the next tick; others spell one, and the weight is changed by what a further unit says. Further inputs show the errors
that were made. So what changes weights is run by weights that can be changed. What is meta-learned is where they start.

Deviations: the gradient is that of backpropagation through time, not computed forward as in the paper; it is the same.
Bits are 1 and -1. Units are tanh, outputs linear; one of the inputs is constant. The paper has no experiment: the
stream is that of Hochreiter et al. (2001), the points of a function, with errors in place of targets. The error is the
mean over the stream and the query set.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.memory.hochreiter import POSITIONS
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.errors import require_at_least
from lightning_meta.metrics import EpisodicMetric, EpisodicMSE
from lightning_meta.modules import StreamModule


class State(NamedTuple):
    """Between two ticks: weights `(B, U, I + U)`, units `(B, U)`, the last error `(B, F)`, the weight read `(B, 1)`.

    Shape letters: `B` streams, `U` units that are no inputs, `I` inputs, `F` outputs, `A` bits of an address, `C`
    connections.
    """

    weights: Tensor
    units: Tensor
    error: Tensor
    weight_read: Tensor


class Stream(NamedTuple):
    """State after the support set, and the errors that were made in it `(S, F)`."""

    state: State
    errors: Tensor


class IntrospectiveNet(StreamModule[Stream]):
    """Predict points of a function one after another; the errors come back as inputs.

    Logs `mse_n`, the squared error at the n-th example of the stream, as `LSTMLearner` does.

    Args:
        in_features: of an input.
        out_features: of a target.
        hidden: units that are neither inputs nor outputs of any kind.
        ticks: of the network for each example; the output is taken at the last.
        sharpness: how much nearer than others a connection must be whose address is spelled: at a squared distance d it
            is meant to the part exp(-sharpness d), and two addresses are at 4 or more.
        rate: of changes to weights; 0: the network cannot change itself.
        metric: as in `EpisodicModule`, by default the mean squared error.
        **kwargs: of `EpisodicModule`.
    """

    addresses: Tensor

    def __init__(
        self,
        in_features: int = 1,
        out_features: int = 1,
        hidden: int = 8,
        ticks: int = 3,
        sharpness: float = 0.5,
        rate: float = 1.0,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(metric=metric or EpisodicMSE(), **kwargs)
        require_at_least(1, hidden=hidden, ticks=ticks)
        self.ticks, self.sharpness, self.rate = ticks, sharpness, rate
        inputs, bits = in_features + 1 + out_features + 1, 1
        while 2**bits < (units := out_features + 2 * bits + 1 + hidden) * (inputs + units):
            bits += 1
        self.parts = [out_features, bits, bits, 1, hidden]  # outputs, what to read, what to change, by how much
        self.weights = nn.Parameter(torch.randn(units, inputs + units) / (inputs + units) ** 0.5)
        numbers_C1 = torch.arange(self.weights.numel())[:, None]
        addresses_CA = (numbers_C1 >> torch.arange(bits)) % 2 * 2 - 1
        self.register_buffer("addresses", addresses_CA.to(self.weights.dtype), persistent=False)

    def meant(self, spelled_BA: Tensor) -> Tensor:
        """How far each connection is the one whose address is spelled `(B, U, I + U)`."""
        bits = self.addresses.shape[1]  # which is the squared length of an address
        distance_BC = spelled_BA.square().sum(1, keepdim=True) + bits - 2 * spelled_BA @ self.addresses.T
        return (-self.sharpness * distance_BC).exp().unflatten(1, self.weights.shape)

    def start(self, size: int) -> State:
        """Before the first tick of so many streams."""
        zeros = self.weights.new_zeros
        weights_BUV = self.weights.expand(size, -1, -1)
        return State(weights_BUV, zeros(size, sum(self.parts)), zeros(size, self.parts[0]), zeros(size, 1))

    def tick(self, x_BI: Tensor, state: State) -> State:
        """All units, the weight that is read and the weights follow from what they were, all at once."""
        _, read_BA, change_BA, by_B1, _ = state.units.split(self.parts, dim=1)
        seen_BV = torch.cat([x_BI, torch.ones_like(x_BI[:, :1]), state.error, state.weight_read, state.units], dim=1)
        net_BU = (state.weights @ seen_BV[..., None]).squeeze(-1)
        outputs = self.parts[0]
        units_BU = torch.cat([net_BU[:, :outputs], net_BU[:, outputs:].tanh()], dim=1)
        weight_read_B1 = (self.meant(read_BA) * state.weights).flatten(1).sum(1, keepdim=True)
        weights_BUV = state.weights + self.rate * by_B1[..., None] * self.meant(change_BA)
        return State(weights_BUV, units_BU, torch.zeros_like(state.error), weight_read_B1)

    def predict_next(self, x_BI: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs `(B, F)` for the next example of each stream. Errors are shown at the first tick only."""
        for _ in range(self.ticks):
            state = self.tick(x_BI, state)
        return state.units[:, : self.parts[0]], state

    def adapt(self, support: Batch) -> Stream:
        state, errors = self.start(1), []
        for t in range(len(support.x)):
            preds_1F, state = self.predict_next(support.x[t : t + 1], state)
            errors.append(support.y[t : t + 1] - preds_1F)
            state = state._replace(error=errors[-1])
        return Stream(state, torch.cat(errors))

    def query_loss(self, stream: Stream, query: Batch) -> TaskOutput:
        state = State(*(leaf.expand(len(query.x), *leaf.shape[1:]) for leaf in stream.state))
        preds_QF, _ = self.predict_next(query.x, state)
        squares_LF = torch.cat([stream.errors, query.y - preds_QF]).square()
        errors_S = stream.errors.square().mean(1)
        logs = {f"mse_{n}": errors_S[n - 1] for n in POSITIONS if n <= len(errors_S)}
        return TaskOutput(squares_LF.mean(), preds_QF, logs)
