"""Algorithms whose inner loop moves a network that has its own head."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, trainable, unroll
from lightning_meta.errors import require_at_least
from lightning_meta.modules.episodic import EpisodicModule
from lightning_meta.modules.learned_rates import inner_optimizer_for


class InnerLoopModule(EpisodicModule[Params]):
    """Base of algorithms that write `support_loss` and `query_loss` of a network, and adapt it by gradient descent.

    With `inner_steps: 0` one network is trained for all tasks, which `eval_inner_steps` fine-tunes on a new one.

    Args:
        backbone: the network.
        inner_lr: step size of the inner loop.
        inner_steps: adaptation steps in training.
        eval_inner_steps: adaptation steps in validation and test. None: as in training.
        first_order: drop second derivatives.
        inner_optimizer: makes the inner optimizer from the step size. None: `SGD`.
        moved: beginnings of the names of the parameters that the inner loop moves.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        inner_lr: float,
        inner_steps: int,
        eval_inner_steps: int | None = None,
        first_order: bool = True,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        moved: tuple[str, ...] = ("",),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(0, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        self.backbone, self.first_order, self.moved = backbone, first_order, moved
        self.inner_steps = inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)

    def theta(self) -> Params:
        """Where the inner loop starts: the parameters of the network that it moves, by name."""
        return {name: value for name, value in trainable(self.backbone).items() if name.startswith(self.moved)}

    @property
    def steps(self) -> int:
        """Adaptation steps of the current mode, training or evaluation."""
        return self.inner_steps if self.training else self.eval_inner_steps

    def support_loss(self, params: Params, support: Batch) -> Tensor:
        """Of the inner loop. Parameters that are not named in `params` keep their meta-learned values."""
        raise NotImplementedError

    def adapt(self, support: Batch) -> Params:
        """Fast weights phi by parameter name."""
        return unroll(
            lambda params: self.support_loss(params, support),
            self.theta(),
            self.inner_optimizer,
            self.steps,
            self.first_order,
        )
