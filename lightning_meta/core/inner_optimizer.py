"""Inner optimizers: how one adaptation step moves the parameters. Pure, so that gradients flow through the step."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Params = dict[str, Tensor]


class InnerOptimizer(Protocol):
    """An update rule without side effects. One with learned parameters is also an `nn.Module`."""

    def init(self, params: Params) -> Any:
        """State (any pytree of tensors) before the first step."""

    def update(self, grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        """Return the parameters after one step and the next state."""


@dataclass(frozen=True)
class SGD:
    """Gradient descent with a fixed rate, `phi <- phi - lr * grad` (MAML, equation 1)."""

    lr: float

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(self, grads: Params, state: tuple[()], params: Params) -> tuple[Params, tuple[()]]:
        return {name: value - self.lr * grads[name] for name, value in params.items()}, state
