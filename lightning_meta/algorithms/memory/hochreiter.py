"""The LSTM that learns to learn: its weights are a learning algorithm, its state is what that has learned.

Hochreiter, Younger, Conwell: "Learning to Learn Using Gradient Descent" (2001), International Conference on Artificial
Neural Networks.

The input at step t is x_t with the target of the step before; the output is the prediction for x_t. The query set
continues the stream: each query example is its next step, alone.

Deviations: an LSTM with forget gates, trained by Adam with full backpropagation through short streams; the paper's
streams are of hundreds of examples and more. The error is the mean over the stream and the query set.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lightning_meta.backbones.recurrent import LSTMCell, LSTMState
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.metrics import EpisodicMetric, EpisodicMSE
from lightning_meta.modules import StreamModule

POSITIONS = (1, 2, 5, 10, 20, 50, 100)  # in the stream, of which the error is logged


class Stream(NamedTuple):
    """State after the support set and its last target `(1, F)`, the predictions made on the way and their targets."""

    state: LSTMState
    target: Tensor
    preds: Tensor
    targets: Tensor


class LSTMLearner(StreamModule[Stream]):
    """Read the support set with its targets one step late; predict each query example by one more step.

    Logs `mse_n`, the squared error at the n-th example of the stream, predicted from the n - 1 before it.

    Args:
        in_features: of an input.
        out_features: of a target.
        hidden: units of the LSTM.
        loss_fn: of predictions and targets.
        metric: as in `EpisodicModule`, by default the mean squared error.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 1,
        hidden: int = 100,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(metric=metric or EpisodicMSE(), **kwargs)
        self.loss_fn = loss_fn
        self.cell = LSTMCell(in_features + out_features, hidden)
        self.output = nn.Linear(hidden, out_features)

    def step(self, x_BI: Tensor, target_BF: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Predictions `(B, F)` for `x`, given the target of the example before, and the next state."""
        state = self.cell(torch.cat([x_BI, target_BF], dim=1), state)
        return self.output(state[0]), state

    def adapt(self, support: Batch) -> Stream:
        target_1F, state = torch.zeros_like(support.y[:1]), self.cell.zero_state(support.x[:1])
        preds = []
        for t in range(len(support.x)):
            pred_1F, state = self.step(support.x[t : t + 1], target_1F, state)
            target_1F = support.y[t : t + 1]
            preds.append(pred_1F)
        return Stream(state, target_1F, torch.cat(preds), support.y)

    def query_loss(self, stream: Stream, query: Batch) -> TaskOutput:
        size = len(query.x)
        target_QF, state = tree_map(lambda leaf: leaf.expand(size, -1), (stream.target, stream.state))
        preds_QF, _ = self.step(query.x, target_QF, state)
        loss = self.loss_fn(torch.cat([stream.preds, preds_QF]), torch.cat([stream.targets, query.y]))
        errors_S = (stream.preds - stream.targets).square().mean(1)
        return TaskOutput(loss, preds_QF, {f"mse_{n}": errors_S[n - 1] for n in POSITIONS if n <= len(errors_S)})
