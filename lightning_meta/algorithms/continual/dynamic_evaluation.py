"""Dynamic evaluation: a network that is trained as always learns from what it reads while it is tested.

Krause, Kahembwe, Murray, Renals: "Dynamic Evaluation of Neural Sequence Models" (2018), arXiv:1709.07432.

Each row of a stream is predicted first and learned from then, by a gradient step that is pulled back to the trained
weights. With `inner_steps` in training too the weights are trained for this, as in Wolf, Chaumond, Delangue:
"Meta-Learning a Dynamical Language Model" (2018), arXiv:1803.10631; their learned rates and pull are `LearnedRates`.

Deviations: steps are those of plain gradient descent; the paper's best rule divides them by how large gradients were in
training, and a row is a segment of five tokens there. Training learns from the rows of query sets.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_meta.algorithms.continual.online import Online, one_by_one
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Batch, InnerOptimizer, Params, PulledBack, TaskOutput, take_step


class Streamed(NamedTuple):
    """Weights after a stream; the mean loss of its rows, each before the step on it, and that by the first weights."""

    params: Params
    loss: Tensor
    static_loss: Tensor


class DynamicEvaluation(Online):
    """The support set is a stream of rows, in the order of the data.

    Logs in evaluation `stream_loss`, the mean over rows, of each before it was learned from, and `static_stream_loss`,
    that of the trained network on the same rows.

    Args:
        backbone, n_way: of `MAML`.
        inner_lr: of the steps; with 0 it is the trained network.
        pull: which part of the way back to the trained weights each step goes.
        inner_steps: in training, on each row. 0: ordinary training.
        eval_inner_steps: in evaluation, on each row.
        inner_optimizer, **kwargs: of `MAML`; the former in place of a `PulledBack` with this `pull`.
    """

    needs = frozenset()  # row after row, not in a random order
    fewest_steps: ClassVar[int] = 0

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.01,
        pull: float = 0.01,
        inner_steps: int = 0,
        eval_inner_steps: int = 1,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            n_way,
            inner_lr,
            inner_steps=inner_steps,
            eval_inner_steps=eval_inner_steps,
            inner_optimizer=inner_optimizer or partial(PulledBack, pull=pull),
            **kwargs,
        )

    def adapt(self, support: Batch) -> Any:
        if self.training:
            return super().adapt(support)
        phi, state, before = self.theta(), self.inner_optimizer.init(self.theta()), []
        for row in one_by_one(support):
            before.append(self.loss(phi, row))
            for _ in range(self.steps):
                phi, state, _ = take_step(partial(self.loss, batch=row), phi, self.inner_optimizer, state)
        learned = phi | support_statistics(self.learner, phi, support.x)
        return Streamed(learned, torch.stack(before).mean(), self.loss({}, support))

    def query_loss(self, adapted: Any, query: Batch) -> TaskOutput:
        if not isinstance(adapted, Streamed):
            return super().query_loss(adapted, query)
        logs = {"stream_loss": adapted.loss, "static_stream_loss": adapted.static_loss}
        return super().query_loss(adapted.params, query)._replace(logs=logs)
