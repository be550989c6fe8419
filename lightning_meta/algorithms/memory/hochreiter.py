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

from lightning_meta.backbones.recurrent import LSTMState
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.metrics import EpisodicMetric, EpisodicMSE
from lightning_meta.modules import BatchedModule, StreamModule

POSITIONS = (1, 2, 5, 10, 20, 50, 100)  # in the stream, of which the error is logged


class Stream(NamedTuple):
    """State `(1, H)` after the support set and its last target `(1, F)`, its predictions and its targets."""

    state: LSTMState
    target: Tensor
    preds: Tensor
    targets: Tensor


class LSTMLearner(BatchedModule[Stream], StreamModule[Stream]):
    """Read the support set with its targets one step late; predict each query example by one more step.

    Logs `mse_n`, the squared error at the n-th example of the stream, predicted from the n - 1 before it.

    Args:
        in_features: of an input.
        out_features: of a target.
        hidden: units of the LSTM.
        loss_fn: of predictions and targets, one of PyTorch's that take `reduction`.
        metric: as in `EpisodicModule`, by default the mean squared error.
        **kwargs: of `BatchedModule`.
    """

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 1,
        hidden: int = 100,
        loss_fn: Callable[..., Tensor] = F.mse_loss,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(metric=metric or EpisodicMSE(), **kwargs)
        self.loss_fn = loss_fn
        self.lstm = nn.LSTM(in_features + out_features, hidden, batch_first=True)
        self.output = nn.Linear(hidden, out_features)

    def read(self, x: Tensor, targets: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Predictions `(L, F)` for L inputs, given the targets of those before them, and the state `(1, H)` at the end.

        Args:
            x: inputs `(L, I)`, of one stream or of B, whose axis comes first.
            targets: `(L, F)`, each one step late.
            state: `(1, H)` at the start; None: zeros.
        """
        # PyTorch's LSTM counts layers, here one, before streams. In bfloat16 many a CPU cannot run it.
        start = None if state is None else tuple(leaf.movedim(-2, 0).contiguous() for leaf in state)
        with torch.autocast(x.device.type, enabled=False):
            hidden, (h, c) = self.lstm(torch.cat([x, targets], dim=-1), start)
        return self.output(hidden), (h.movedim(0, -2), c.movedim(0, -2))

    def adapt(self, support: Batch) -> Stream:
        delayed = F.pad(support.y, (0, 0, 1, -1))  # no target is known before the first example
        preds, state = self.read(support.x, delayed)
        return Stream(state, support.y[..., -1:, :], preds, support.y)

    def query_loss(self, stream: Stream, query: Batch) -> TaskOutput:
        # Each query example is a stream of length 1 that goes on from where the support set ended.
        (*tasks, size, _), target, state = query.x.shape, stream.target, stream.state
        starts = tree_map(lambda leaf: leaf.expand(*tasks, size, -1).reshape(-1, 1, leaf.shape[-1]), (target, state))
        preds, _ = self.read(query.x.reshape(-1, 1, query.x.shape[-1]), *starts)
        preds_QF = preds.view(query.y.shape)
        loss = self.loss_fn(
            torch.cat([stream.preds, preds_QF], dim=-2), torch.cat([stream.targets, query.y], dim=-2), reduction="none"
        )
        errors_S = (stream.preds - stream.targets).square().mean(-1)
        logs = {f"mse_{n}": errors_S[..., n - 1] for n in POSITIONS if n <= errors_S.shape[-1]}
        return TaskOutput(loss.mean((-2, -1)), preds_QF, logs)
