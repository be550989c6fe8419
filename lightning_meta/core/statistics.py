"""Statistics over episodes, the unit in which few-shot results are reported."""

from math import cos, log, pi, sin, sqrt, tan

import torch
from torch import Tensor

Z95 = 1.96  # two-sided 95 % quantile of the normal distribution, as the field's tables use it


def log_mean_probabilities(logits_MQN: Tensor) -> Tensor:
    """Logarithm `(Q, N)` of the mean probabilities of M classifiers, from their logits."""
    return logits_MQN.log_softmax(-1).logsumexp(0) - log(len(logits_MQN))


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


def mean_and_t95(values: Tensor) -> tuple[float, float]:
    """Mean of a few values `(n,)`, and half-width of its 95 % confidence interval by Student's t, NaN for n = 1.

    For a handful of training seeds: with three of them the normal quantile would make the interval less than half as
    wide as it is.
    """
    values = values.double()
    n = len(values)
    half = t95(n - 1) * values.std().item() / sqrt(n) if n > 1 else float("nan")
    return values.mean().item(), half


def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t, by bisection of its distribution function."""
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return sqrt(degrees) * tan(low)


def _within(angle: float, degrees: int) -> float:
    """Probability that |t| is below sqrt(degrees) tan(angle): Abramowitz, Stegun: "Handbook of Mathematical Functions"
    (1964), 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= k / (k + 1) * cos(angle) ** 2
    total *= sin(angle)
    return 2 / pi * (angle + total) if odd else total
