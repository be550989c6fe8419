"""Inner optimizers: how one adaptation step moves the parameters. Pure, so that gradients flow through the step."""

from dataclasses import dataclass
from math import inf, log
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigError

Params = dict[str, Tensor]


def trainable(module: nn.Module) -> Params:
    """The parameters that are not frozen (`requires_grad_(False)`), by name."""
    return {name: param for name, param in module.named_parameters() if param.requires_grad}


@runtime_checkable  # the command line checks that a class is one
class InnerOptimizer(Protocol):
    """An update rule without side effects. One with learned parameters is also an `nn.Module`."""

    def init(self, params: Params) -> Any:
        """State (any pytree of tensors) before the first step."""

    def update(self, grads: Params, state: Any, params: Params, loss: Tensor) -> tuple[Params, Any]:
        """Return the parameters after one step and the next state; `loss` (scalar) is that of `params`."""


def of(rate: float | Params, name: str) -> float | Tensor:
    """The rate of one parameter."""
    return rate[name] if isinstance(rate, dict) else rate


class Rule:
    """What the update rules below share: a check of their rate, unless it is learned."""

    lr: float | Params

    def __post_init__(self) -> None:
        if isinstance(self.lr, float | int) and not self.lr >= 0:
            raise ConfigError(f"an inner step size of {self.lr} climbs the loss; take a positive number.")


@dataclass(frozen=True)
class SGD(Rule):
    """Gradient descent, `phi <- phi - lr * grad` (MAML, equation 1); `lr` is one rate, or rates by parameter name."""

    lr: float | Params

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(self, grads: Params, state: tuple[()], params: Params, loss: Tensor) -> tuple[Params, tuple[()]]:
        return {name: value - of(self.lr, name) * grads[name] for name, value in params.items()}, state


@dataclass(frozen=True)
class PulledBack(Rule):
    """Gradient descent that is pulled back to its start: `phi <- phi - lr * grad + pull * (theta - phi)`.

    Dynamic evaluation (Krause et al. 2018, arXiv:1709.07432, equation 5). `lr` and `pull` are numbers, or numbers by
    parameter name.
    """

    lr: float | Params
    pull: float | Params = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pull, float | int) and not 0 <= self.pull <= 1:
            raise ConfigError(f"pull={self.pull} is a part of the way back to the start; take one from 0 to 1.")

    def init(self, params: Params) -> Params:
        """The start."""
        return params

    def update(self, grads: Params, state: Params, params: Params, loss: Tensor) -> tuple[Params, Params]:
        moved = {
            name: value - of(self.lr, name) * grads[name] + of(self.pull, name) * (state[name] - value)
            for name, value in params.items()
        }
        return moved, state


@dataclass(frozen=True)
class Momentum(Rule):
    """Gradient descent with momentum, as `torch.optim.SGD`: `v <- momentum * v + grad; phi <- phi - lr * v`.

    With `nesterov` the step is along `grad + momentum * v` (Nesterov's accelerated gradient). `lr` is one rate, or
    rates by parameter name.
    """

    lr: float | Params
    momentum: float = 0.9
    nesterov: bool = False

    def init(self, params: Params) -> Params:
        """The velocity v."""
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def update(self, grads: Params, state: Params, params: Params, loss: Tensor) -> tuple[Params, Params]:
        velocity = {name: self.momentum * state[name] + grad for name, grad in grads.items()}
        step = velocity
        if self.nesterov:
            step = {name: grad + self.momentum * velocity[name] for name, grad in grads.items()}
        return {name: value - of(self.lr, name) * step[name] for name, value in params.items()}, velocity


@dataclass(frozen=True)
class RMSprop(Rule):
    """RMSprop (Tieleman and Hinton 2012, lecture 6.5 of a course); `alpha` and `eps` as in `torch.optim.RMSprop`.

    `lr` is one rate, or rates by parameter name.
    """

    lr: float | Params
    alpha: float = 0.99
    eps: float = 1e-8

    def init(self, params: Params) -> Params:
        """The running average of the squared gradients."""
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def update(self, grads: Params, state: Params, params: Params, loss: Tensor) -> tuple[Params, Params]:
        square = {name: self.alpha * state[name] + (1 - self.alpha) * grad.square() for name, grad in grads.items()}
        moved = {
            name: value - of(self.lr, name) * grads[name] / (_root(square[name]) + self.eps)
            for name, value in params.items()
        }
        return moved, square


class AdamState(NamedTuple):
    """Steps taken; running averages of the gradients and of their squares."""

    step: Tensor
    mean: Params
    square: Params


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with bias correction; `betas` and `eps` as in `torch.optim.Adam`.

    `lr` is one rate, or rates by parameter name.
    """

    lr: float | Params
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self, params: Params) -> AdamState:
        zeros = {name: torch.zeros_like(value) for name, value in params.items()}
        like = next(iter(params.values()))
        return AdamState(torch.zeros((), dtype=like.dtype, device=like.device), zeros, zeros)

    def update(self, grads: Params, state: AdamState, params: Params, loss: Tensor) -> tuple[Params, AdamState]:
        (beta1, beta2), step = self.betas, state.step + 1
        mean = {name: beta1 * value + (1 - beta1) * grads[name] for name, value in state.mean.items()}
        square = {name: beta2 * value + (1 - beta2) * grads[name].square() for name, value in state.square.items()}
        shrunk, correction = _weight_of_history(beta1, step), _weight_of_history(beta2, step).sqrt()
        moved = {
            name: value - of(self.lr, name) / shrunk * mean[name] / (_root(square[name]) / correction + self.eps)
            for name, value in params.items()
        }
        return moved, AdamState(step, mean, square)


def _weight_of_history(beta: float, step: Tensor) -> Tensor:
    """`1 - beta ** step` to the last digit: what the weights in a running average of so many values sum to."""
    return -torch.expm1(step * (log(beta) if beta else -inf))


def _root(square: Tensor) -> Tensor:
    """Square root whose slope at zero is 0, not infinite: a unit without gradient must not make second order NaN."""
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


def module_key(name: str) -> str:
    """A parameter's name as a name within a module, where no dots are allowed."""
    return name.replace(".", "/")
