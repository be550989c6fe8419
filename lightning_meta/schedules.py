"""Learning rates that follow the length of the training, whatever it is: a longer one stretches them.

Those of torch are given their length as a number (`T_max`), which has to be changed with `trainer.max_steps`; past it a
cosine comes up again.
"""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_meta.errors import ConfigError


class Schedule(LRScheduler):
    """A rate as a function of the part of the training that is done. A subclass writes `rate`.

    Args:
        optimizer: whose rates are set.
        steps: the length in outer updates, after which the rates stay. None: that of the training, see `stretch`.
    """

    def __init__(self, optimizer: Optimizer, steps: int | None) -> None:
        if steps is not None and steps < 1:
            raise ConfigError(f"a schedule of {steps} steps is none; take at least 1, or leave it to the training.")
        self.given, self.steps = steps, steps
        super().__init__(optimizer)

    def rate(self, base: float, done: float) -> float:
        """The rate where `done` of the training, from 0 to 1, is done and `base` is the optimizer's own rate."""
        raise NotImplementedError

    def stretch(self, steps: int) -> None:
        """Say how long the training is; an explicit length stays. Modules do before the first step."""
        self.steps = self.given or steps

    def get_lr(self) -> list[float | Tensor]:
        bases = [float(base) for base in self.base_lrs]
        if self.last_epoch == 0:
            return [self.rate(base, 0.0) for base in bases]
        if self.steps is None:
            raise ConfigError(f"{type(self).__name__} does not know how long training is; call its stretch(steps).")
        done = min(self.last_epoch / self.steps, 1.0)
        return [self.rate(base, done) for base in bases]

    def state_dict(self) -> dict[str, Any]:
        """Without the length: a training that goes on may have another one."""
        return {key: value for key, value in super().state_dict().items() if key not in ("given", "steps")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class CosineAnnealing(Schedule):
    """Half a cosine, from the optimizer's rate down to `eta_min` (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Args:
        optimizer: whose rates are set.
        T_max: the length in outer updates. None: that of the training.
        eta_min: the rate at its end.
    """

    def __init__(self, optimizer: Optimizer, T_max: int | None = None, eta_min: float = 0.0) -> None:
        self.eta_min = eta_min
        super().__init__(optimizer, T_max)

    def rate(self, base: float, done: float) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * done)) / 2


class LinearDecay(Schedule):
    """A straight line from `start_factor` to `end_factor` times the optimizer's rate.

    Args:
        optimizer: whose rates are set.
        start_factor: at the first step.
        end_factor: at the end.
        total_iters: the length in outer updates. None: that of the training.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0,
        end_factor: float = 0.0,
        total_iters: int | None = None,
    ) -> None:
        self.start_factor, self.end_factor = start_factor, end_factor
        super().__init__(optimizer, total_iters)

    def rate(self, base: float, done: float) -> float:
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class StepDecay(Schedule):
    """Multiply the rate by `gamma` again and again.

    Args:
        optimizer: whose rates are set.
        every: after which part of the training, such as 0.25: four times, of which the last is at the end.
        gamma: the factor.
    """

    def __init__(self, optimizer: Optimizer, every: float, gamma: float = 0.1) -> None:
        if not 0 < every <= 1:
            raise ConfigError(
                f"every={every} must be a part of the training, at most 1; for steps, take torch's StepLR."
            )
        self.every, self.gamma = every, gamma
        super().__init__(optimizer, None)

    def rate(self, base: float, done: float) -> float:
        return base * self.gamma ** math.floor(done / self.every + 1e-9)  # 0.3 / 0.1 is below 3
