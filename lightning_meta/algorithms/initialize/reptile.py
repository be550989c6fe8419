"""Reptile: move the initialisation towards the weights at which training on each task ends.

Nichol, Achiam, Schulman: "On First-Order Meta-Learning Algorithms" (2018), arXiv:1803.02999.

The training loss is half the squared distance from theta to phi, which is held constant. Its gradient is theta - phi,
so a meta-optimizer `torch.optim.SGD` with learning rate epsilon takes the paper's step,
`theta <- theta + epsilon * mean(phi - theta)`.

Deviations: the authors' code plays the tasks of a meta-batch one after the other, and one optimizer goes on from inner
loop to inner loop through all of training. With `carry_inner_state` ours goes on from meta-batch to meta-batch: its
tasks start from one state, and the mean of the states in which they end is the next. Running averages then reach back
over as many meta-batches as theirs over tasks. Evaluation is as theirs: every task starts from the state that training
has come to, as it does from theta, and what becomes of it is forgotten. Without the option, of which the paper does not
speak, the optimizer starts anew in every task.
Evaluation without transduction is the norm protocol `inductive`: a query example is normalised with the statistics of
the support set, in the paper with those of the support set and itself. In evaluation the mini-batches come in the same
order every time, so that results repeat.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.algorithms.initialize.maml import MAML, refuse_to_learn
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Adam, Batch, InnerOptimizer, Params, Progress, TaskOutput, descend, detach
from lightning_meta.core.sampling import episode_keys, uniform
from lightning_meta.errors import ConfigError
from lightning_meta.modules.buffers import Buffers


class Trained(NamedTuple):
    """Where training on a task ended: fast weights by parameter name, and new values of buffers."""

    phi: Params
    buffers: Params


class Reptile(MAML):
    """Train on each task's support set as usual, and meta-learn from where that ended. Query sets only measure.

    Args:
        backbone, n_way: of `MAML`.
        inner_lr: step size of the inner loop.
        inner_optimizer: makes the inner optimizer from the step size. Default: Adam without momentum (beta1 = 0).
        inner_batch_size: examples in the mini-batch of an inner step; each pass over the support set is shuffled, and a
            batch may run on into the next pass. None: the whole support set in every step.
        eval_inner_batch_size: the same in validation and test. None: as in training.
        carry_inner_state: start the inner optimizer of every task in the state that training has come to.
        **kwargs: of `MAML`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.001,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        inner_batch_size: int | None = None,
        eval_inner_batch_size: int | None = None,
        carry_inner_state: bool = False,
        **kwargs: Any,
    ) -> None:
        make = inner_optimizer or partial(Adam, betas=(0.0, 0.999))
        super().__init__(backbone, n_way, inner_lr, first_order=True, inner_optimizer=make, **kwargs)
        refuse_to_learn(self)
        if min(inner_batch_size or 1, eval_inner_batch_size or 1) < 1 or 0 in (inner_batch_size, eval_inner_batch_size):
            raise ConfigError(
                f"inner_batch_size={inner_batch_size} and eval_inner_batch_size={eval_inner_batch_size} must be at "
                "least 1; None takes the whole support set."
            )
        self.inner_batch_size = inner_batch_size
        self.eval_inner_batch_size = inner_batch_size if eval_inner_batch_size is None else eval_inner_batch_size
        self.inner_state = Buffers(self.inner_optimizer.init(detach(self.theta()))) if carry_inner_state else None

    def adapt(self, support: Batch) -> Trained:  # type: ignore[override]
        """Fast weights phi, constant in theta, and in training the state in which their optimizer ended."""
        theta = detach(self.theta())
        losses = [partial(self.loss, batch=batch) for batch in self.mini_batches(support)]
        start = self.inner_state.tree if self.inner_state else self.inner_optimizer.init(theta)
        phi, state = descend(losses, Progress(theta, start), self.inner_optimizer)
        carried = self.inner_state.named(state) if self.inner_state and self.training else {}
        return Trained(
            phi | support_statistics(self.learner, phi, support.x),
            {f"inner_state.{name}": value for name, value in carried.items()},
        )

    def query_loss(self, trained: Trained, query: Batch) -> TaskOutput:  # type: ignore[override]
        out = super().query_loss(trained.phi, query)
        if not self.training:
            return out
        squares = [(value - trained.phi[name]).square().sum() for name, value in self.theta().items()]
        return TaskOutput(torch.stack(squares).sum() / 2, out.preds, {"query_loss": out.loss}, trained.buffers)

    def mini_batches(self, support: Batch) -> list[Batch]:
        """The examples that each inner step sees."""
        size = self.inner_batch_size if self.training else self.eval_inner_batch_size
        if size is None:
            return [support] * self.steps
        order = self.shuffled_passes(support, -(-self.steps * size // len(support.y)))
        return [Batch(support.x[i], support.y[i]) for i in order[: self.steps * size].view(self.steps, size).unbind()]

    def shuffled_passes(self, support: Batch, passes: int) -> Tensor:
        """Positions of the support examples, in a new order for each pass: a new draw in training, else a fixed one."""
        examples = len(support.y)
        if self.training:
            keys = torch.rand(passes, examples, device=support.x.device)
        else:
            keys = torch.from_numpy(uniform(episode_keys(0, 0, range(passes)), examples)).to(support.x.device)
        return keys.argsort(1).flatten()
