"""Independent normal distributions, given by means and standard deviations."""

import math
from typing import NamedTuple

from torch import Tensor


class Gaussian(NamedTuple):
    """Normal distributions of the elements of a tensor."""

    mean: Tensor
    std: Tensor


def log_density(values: Tensor, gaussian: Gaussian) -> Tensor:
    """Logarithm of the density of each value, in nats."""
    mean, std = gaussian
    return -((values - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2


def kl_divergence(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q) of each element, in nats."""
    ratio = p.std / q.std
    return (ratio.square() + ((p.mean - q.mean) / q.std).square() - 1) / 2 - ratio.log()


def mixture_moments(components: Gaussian, dim: int = 0) -> Gaussian:
    """Mean and standard deviation of mixtures of equally likely normal distributions, which the axis `dim` counts."""
    mean, std = components
    return Gaussian(mean.mean(dim), (std.square().mean(dim) + mean.var(dim, correction=0)).sqrt())
