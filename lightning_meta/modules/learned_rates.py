"""Hyper-parameters of an inner optimizer as meta-parameters: trained, like the initialisation, by the meta-gradient."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from lightning_meta.core.inner_optimizer import SGD, InnerOptimizer, Params, module_key
from lightning_meta.errors import ConfigError

Per = Literal["element", "tensor", "all"]


class LearnedRates(nn.Module):
    """Any inner optimizer, its rates and if asked for its weight decay learned.

    A rate may change its sign: it learns the direction of the update too. So may a weight decay.

    Args:
        lr: value of every rate before training.
        optimizer: makes the inner optimizer from its rates: a dataclass with a field `lr`, such as `SGD` or `Adam`.
        per: what has a rate (and a weight decay) of its own: `element` (Meta-SGD), `tensor` (each weight and bias,
            MAML++) or `all` (one).
        steps: give each of so many adaptation steps its own (MAML++); later steps use the last. None: the same in every
            step.
        weight_decay: its value before training. It is added to the gradient, `grad + weight_decay * phi`, as in
            `torch.optim.SGD` and `torch.optim.Adam` (not as in AdamW). None: no weight decay.
        also: further numbers of the optimizer that are learned as its rates are, such as `pull` of `PulledBack`. They
            start where the optimizer has them.

    `build` must be called before use; `MAML` and its family do.
    """

    def __init__(
        self,
        lr: float,
        optimizer: Callable[[float], InnerOptimizer] = SGD,
        per: Per = "tensor",
        steps: int | None = None,
        weight_decay: float | None = None,
        also: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.lr, self.weight_decay, self.per, self.steps = lr, weight_decay, per, steps
        self.optimizer = optimizer(lr)
        if not is_dataclass(self.optimizer) or not hasattr(self.optimizer, "lr"):
            raise ConfigError(
                f"LearnedRates cannot set the rates of {type(self.optimizer).__name__}, not a dataclass with a "
                "field `lr`; take SGD or Adam."
            )
        learnable = [field.name for field in fields(self.optimizer) if field.type == float | Params]
        if unknown := [name for name in also if name not in learnable or name == "lr"]:
            raise ConfigError(
                f"also={list(also)}: {type(self.optimizer).__name__} has no {unknown[0]} that could be learned beside "
                f"its rates; it has {', '.join(learnable[1:]) or 'none such'}."
            )
        self.also: dict[str, float] = {name: float(getattr(self.optimizer, name)) for name in also}
        if steps is not None and steps < 1:
            raise ConfigError(f"steps={steps} must be at least 1; None gives all steps the same rates.")

    def build(self, params: Params) -> Self:
        """Make the meta-parameters for the parameters that will be adapted; only their names and shapes matter."""
        self.rates = Learned(params, self.lr, self.per, self.steps)
        if self.weight_decay is not None:
            self.decays = Learned(params, self.weight_decay, self.per, self.steps)
        self.others = nn.ModuleDict(
            {name: Learned(params, start, self.per, self.steps) for name, start in self.also.items()}
        )
        return self

    def init(self, params: Params) -> tuple[int, Any]:
        """The number of steps taken, and the optimizer's own state."""
        if not hasattr(self, "rates"):
            raise ConfigError("LearnedRates has no rates yet; call build(params) before the first step.")
        return 0, self.optimizer.init(params)

    def update(
        self, grads: Params, state: tuple[int, Any], params: Params, loss: Tensor
    ) -> tuple[Params, tuple[int, Any]]:
        step, inner = state
        if self.weight_decay is not None:
            grads = {name: grads[name] + self.decays.at(step, name) * value for name, value in params.items()}
        learned = {"lr": self.rates} | cast(dict[str, Learned], dict(self.others.items()))
        numbers = {key: {name: table.at(step, name) for name in params} for key, table in learned.items()}
        moved, inner = replace(cast(Any, self.optimizer), **numbers).update(grads, inner, params, loss)
        return moved, (step + 1, inner)


class Learned(nn.ParameterDict):
    """A table of learned values, all `start` before training; the arguments are those of `LearnedRates`."""

    def __init__(self, params: Params, start: float, per: Per, steps: int | None) -> None:
        step_axis = () if steps is None else (steps,)
        shapes = {"all": ()} if per == "all" else {n: p.shape if per == "element" else () for n, p in params.items()}
        super().__init__({module_key(n): nn.Parameter(torch.full((*step_axis, *s), start)) for n, s in shapes.items()})
        self.per, self.steps = per, steps

    def at(self, step: int, name: str) -> Tensor:
        """Value for the parameter `name` in a step, a scalar or shaped as the parameter."""
        values = self["all" if self.per == "all" else module_key(name)]
        return values if self.steps is None else values[min(step, self.steps - 1)]


def inner_optimizer_for(
    theta: Callable[[], Params], lr: float, make: Callable[[float], InnerOptimizer]
) -> InnerOptimizer:
    """The inner optimizer that `make` makes from a step size, ready to adapt what `theta` returns."""
    optimizer = make(lr)
    return optimizer.build(theta()) if isinstance(optimizer, LearnedRates) else optimizer
