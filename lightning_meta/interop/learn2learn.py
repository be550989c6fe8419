"""Any gradient transform of learn2learn (`learn2learn.optim`) as the update rule of our inner loops.

Arnold, Mahajan, Datta, Bunner, Zarkias: "learn2learn: A Library for Meta-Learning Research" (2020), arXiv:2008.12284.
"""

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from types import ModuleType

from torch import Tensor, nn

from lightning_meta.core import Params
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.errors import ConfigError


def import_learn2learn() -> ModuleType:
    """The library, which takes seconds to import and does not exist for every Python."""
    try:
        # It imports Gym, which writes a notice to stderr that its own maintenance has ended.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import learn2learn
    except ImportError as error:
        raise ConfigError(
            "this algorithm needs learn2learn, which is not installed; on Python 3.11 or 3.12 run "
            f"`pip install -r requirements.txt`, for Python 3.13 there is no learn2learn. ({error})"
        ) from error
    return learn2learn


class TransformedSGD(nn.Module):
    """Gradient descent along a learned transform of the gradient, `phi <- phi - lr * transform(grad)`.

    Each parameter tensor has a transform of its own, whose parameters are meta-parameters. Works under `vmap` as far as
    the transform does; those of learn2learn do.

    Args:
        params: the parameters that will be adapted.
        lr: step size.
        transform: makes the transform of one parameter, a module from a gradient to an update of the same shape, or
            None to use the gradient as it is. For example `l2l.optim.MetaCurvatureTransform`,
            `l2l.optim.ModuleTransform(nn.Linear)` or `l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)`.
    """

    def __init__(self, params: Params, lr: float, transform: Callable[[Tensor], nn.Module | None]) -> None:
        super().__init__()
        self.lr = lr
        made = {name: transform(value) for name, value in params.items()}
        self.transforms = nn.ModuleDict(
            {module_key(name): module for name, module in made.items() if module is not None}
        )

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(self, grads: Params, state: tuple[()], params: Params, loss: Tensor) -> tuple[Params, tuple[()]]:
        return {name: value - self.lr * self.direction(name, grads[name]) for name, value in params.items()}, state

    def direction(self, name: str, grad: Tensor) -> Tensor:
        key = module_key(name)
        # Transforms take views, which a gradient in channels-last layout does not allow.
        return self.transforms[key](grad.contiguous()) if key in self.transforms else grad
