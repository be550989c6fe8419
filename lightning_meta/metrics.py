"""Metrics over EPISODES: mean and 95 % confidence interval of one value each, exact on any number of ranks."""

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_meta.core import mean_and_ci95
from lightning_meta.core.gaussian import Gaussian, log_density


class EpisodicMetric(Metric):
    """Mean over episodes. Holds sums in float64, so that ranks of any size add up to the same result.

    The sums follow the module to its device, but never to its precision: in bfloat16 a sum of accuracies stops growing
    after a few hundred episodes.

    A subclass sets `name`, `mode` (whether larger is better) and `per_episode`, and how its values are written.
    """

    full_state_update = False
    name: str
    mode: Literal["min", "max"]
    scale, unit, digits = 1, "", 4  # of a value in words
    companions: "tuple[type[EpisodicMetric], ...]" = ()  # what is logged beside it in validation and test
    total: Tensor
    total_of_squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "total_of_squares", "count"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """What moves or converts a module calls this."""
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), *args, **kwargs)
        return self

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        """One value for each of T episodes from their predictions `(T, Q, ...)` and targets `(T, Q, ...)`."""
        raise NotImplementedError

    def update(self, values: Tensor) -> None:
        """Add episodes by their values `(T,)`."""
        values = values.detach().double()
        self.total += values.sum()
        self.total_of_squares += values.square().sum()
        self.count += values.numel()

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and half-width of the 95 % confidence interval."""
        return mean_and_ci95(self.total, self.total_of_squares, self.count)

    @classmethod
    def number(cls, mean: float, ci95: float | None = None) -> str:
        """A value, with half of its interval, in the metric's unit: `89.76 ± 0.58`

        With more digits where the smaller one would read as zero.
        """
        values = [cls.scale * value for value in (mean, ci95) if value is not None]
        places = [-math.floor(math.log10(abs(value))) for value in values if value and math.isfinite(value)]
        digits = max([cls.digits, *places])
        return " ± ".join(f"{value:.{digits}f}" for value in values)

    @classmethod
    def text(cls, mean: float, ci95: float | None = None) -> str:
        """The same with the unit: `89.76 ± 0.58 %`"""
        return f"{cls.number(mean, ci95)} {cls.unit}".rstrip()

    @classmethod
    def label(cls, name: str) -> str:
        """A name with the unit, for columns and axes: `acc (%)`"""
        return f"{name} ({cls.unit})" if cls.unit else name


class EpisodicMean(EpisodicMetric):
    """Mean of a value that the hooks return: the query loss, or what they log."""

    name, mode = "loss", "min"


class FinalLoss(EpisodicMetric):
    """Loss of an optimizee at the end of its optimization."""

    name, mode = "final_loss", "min"


class EpisodicAccuracy(EpisodicMetric):
    """Share of query examples whose class is predicted, per episode."""

    name, mode = "acc", "max"
    scale, unit, digits = 100, "%", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return (preds.argmax(-1) == targets).double().mean(-1)


class EpisodicR2(EpisodicMetric):
    """Coefficient of determination of the query predictions, per episode: 1 - squared error / variance of the targets.

    The variance is that of the episode's own query targets: 0 is as good as their mean, which nobody is told. Where
    they are all equal, it is 1 for predictions without an error and 0 for others, as in scikit-learn.
    """

    name, mode = "r2", "max"

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        preds, targets = preds.double().flatten(1), targets.double().flatten(1)
        error = (preds - targets).square().sum(1)
        variance = (targets - targets.mean(1, keepdim=True)).square().sum(1)
        return torch.where(variance > 0, 1 - error / variance, (error == 0).double())


class EpisodicMSE(EpisodicMetric):
    """Mean squared error of the query predictions, per episode."""

    name, mode = "mse", "min"
    companions = (EpisodicR2,)

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return (preds.double() - targets.double()).square().flatten(1).mean(-1)


class EpisodicLogLikelihood(EpisodicMetric):
    """Mean log-density of the query points under normal predictions, in nats per point, per episode.

    Predictions are `(T, Q, Y, 2)`: mean and standard deviation of each of Y numbers, of which a point is made.
    """

    name, mode = "log_likelihood", "max"

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        prediction = Gaussian(*preds.double().unbind(-1))
        return log_density(targets.double(), prediction).sum(-1).mean(-1)


def metric_of(name: str) -> type[EpisodicMetric]:
    """How values are written that a file of results has by this name: a metric's, or those of parts, such as `mse_5`.

    Those of a metric of somebody else are written as plain numbers.
    """
    known = (cls for cls in EpisodicMetric.__subclasses__() if f"{name}_".startswith(f"{cls.name}_"))
    return next(known, EpisodicMetric)
