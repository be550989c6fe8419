"""Statistics over episodes, the unit in which few-shot results are reported."""

import torch
from torch import Tensor

Z95 = 1.96  # two-sided 95 % quantile of the normal distribution, as the field's tables use it


def mean_and_ci95(total: Tensor, total_of_squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and half-width of its 95 % confidence interval, `1.96 s / sqrt(n)`, from sums over `n` episodes.

    `s` is the sample standard deviation (n - 1 in the denominator). Sums add up across ranks in any order, so every
    number of processes gives the same result. With fewer than two episodes the half-width is NaN: one episode says
    nothing about the spread.
    """
    mean = total / count
    variance = (total_of_squares - count * mean.square()).clamp_min(0) / (count - 1)
    return mean, torch.where(count > 1, Z95 * (variance / count).sqrt(), torch.nan)


def mean_and_ci95_over(values: Tensor) -> tuple[Tensor, Tensor]:
    """The same over the first axis of values `(n, ...)`."""
    return mean_and_ci95(values.sum(0), values.square().sum(0), torch.tensor(len(values), dtype=torch.float64))
