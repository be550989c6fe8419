"""Random numbers within a hook: those of `core.sampling`, as tensors of a key that is a tensor too.

A generator would give vmap, a loop, each rank and each second look at the same step numbers of its own. A hook that
draws from the key of its step is a pure function, which finite differences and products with a Hessian need.
"""

import math

import torch
from torch import Tensor

# The words of `sampling`, as signed ones: torch multiplies no others, and the product is the same.
GOLDEN, FIRST, SECOND = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def subkey(key: Tensor, indices: Tensor) -> Tensor:
    """Independent keys of a key `()`, int64, for each index of any shape: `sampling.subkeys`."""
    x = key + GOLDEN * (indices + 1)
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def uniform(key: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform draws in [0, 1) from a key `()`: `sampling.uniform`, rounded to `dtype`."""
    places = torch.arange(math.prod(shape), device=key.device).view(shape)
    unit = _shifted(subkey(key, places), 11).double() * 2.0**-53
    return unit.to(dtype or torch.get_default_dtype())


def normal(key: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal draws from a key `()`: `sampling.normal`, rounded to `dtype`."""
    radius_key, angle_key = subkey(key, torch.arange(2, device=key.device))
    radius = (-2 * (-uniform(radius_key, *shape, dtype=torch.float64)).log1p()).sqrt()
    draws = radius * (2 * math.pi * uniform(angle_key, *shape, dtype=torch.float64)).cos()
    return draws.to(dtype or torch.get_default_dtype())


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, as an unsigned word."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
