"""Operations on images that can be differentiated by how strong they are, and mapped (vmap).

All that move pixels are composed to one map of coordinates and sampled once, so that a chain of them does not blur. Of
strength zero each is the identity; of the opposite strength it goes the other way.

| operation | strength |
|---|---|
| `rotate` | degrees, counter-clockwise |
| `shift_x`, `shift_y` | part of the width to the right, of the height down |
| `shear_x`, `shear_y` | by how much a column (row) moves for each unit that it is away from the middle |
| `scale` | logarithm of the factor |
| `brightness` | is added |
| `contrast` | logarithm of the factor of what differs from the mean of the image |
"""

from collections.abc import Callable, Mapping
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core.dice import uniform
from lightning_meta.errors import ConfigError

# Two rows of where a point of the result comes from: coefficients of x, y and 1, where the image is [-1, 1]^2.
Rows = tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _rotate(m: Tensor, one: Tensor, aspect: float) -> Rows:
    turn = m * (pi / 180)
    cos, sin, zero = turn.cos(), turn.sin(), 0 * one
    return (cos, -sin * aspect, zero), (sin / aspect, cos, zero)


def _shift_x(m: Tensor, one: Tensor, aspect: float) -> Rows:
    return (one, 0 * one, -2 * m), (0 * one, one, 0 * one)


def _shift_y(m: Tensor, one: Tensor, aspect: float) -> Rows:
    return (one, 0 * one, 0 * one), (0 * one, one, -2 * m)


def _shear_x(m: Tensor, one: Tensor, aspect: float) -> Rows:
    return (one, -m * aspect, 0 * one), (0 * one, one, 0 * one)


def _shear_y(m: Tensor, one: Tensor, aspect: float) -> Rows:
    return (one, 0 * one, 0 * one), (-m / aspect, one, 0 * one)


def _scale(m: Tensor, one: Tensor, aspect: float) -> Rows:
    return ((-m).exp(), 0 * one, 0 * one), (0 * one, (-m).exp(), 0 * one)


def _brightness(x: Tensor, m: Tensor) -> Tensor:
    return x + m


def _contrast(x: Tensor, m: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + m.exp() * (x - mean)


MOVES: dict[str, Callable[[Tensor, Tensor, float], Rows]] = {
    "rotate": _rotate, "shift_x": _shift_x, "shift_y": _shift_y, "shear_x": _shear_x, "shear_y": _shear_y,
    "scale": _scale,
}  # fmt: skip
COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"brightness": _brightness, "contrast": _contrast}
# In the order in which they are applied, and how strong they may be.
LARGEST: dict[str, float] = {
    "rotate": 60.0, "shift_x": 0.3, "shift_y": 0.3, "shear_x": 0.6, "shear_y": 0.6, "scale": 0.6,
    "brightness": 0.5, "contrast": 1.0,
}  # fmt: skip


def augment(x: Tensor, strengths: Mapping[str, Tensor]) -> Tensor:
    """Images `(B, C, H, W)`, each after all operations; what comes from outside of an image is zero.

    Args:
        x: the images.
        strengths: `(B,)` by the name of an operation, in any order: they are applied in that of `LARGEST`.
    """
    moves = [name for name in MOVES if name in strengths]
    if moves:
        aspect, one = x.shape[2] / x.shape[3], torch.ones_like(strengths[moves[0]])
        corner = torch.tensor([0.0, 0.0, 1.0], dtype=x.dtype, device=x.device).expand(len(x), 1, 3)
        where = torch.eye(3, dtype=x.dtype, device=x.device).expand(len(x), 3, 3)
        for name in moves:
            rows = [torch.stack(row, -1) for row in MOVES[name](strengths[name], one, aspect)]
            # The operation that is applied last is asked first where a point comes from.
            where = where @ torch.cat([torch.stack(rows, 1).to(x.dtype), corner], 1)
        x = F.grid_sample(x, _middles(x) @ where[:, None, :2].mT, align_corners=False)
    for name in COLOURS:
        if name in strengths:
            x = COLOURS[name](x, strengths[name].to(x.dtype)[:, None, None, None])
    return x


def augment_within(x: Tensor, largest: Mapping[str, Tensor], key: Tensor) -> Tensor:
    """As `augment`, with strengths that are drawn for each image, uniform from minus to plus the largest.

    Args:
        x: images `(B, C, H, W)`.
        largest: `()`, or `(B,)`, by the name of an operation.
        key: `()` int64, of the draws (see `core.dice`).
    """
    sides_BK = 2 * uniform(key, len(x), len(largest), dtype=x.dtype) - 1
    return augment(x, {name: m * side for (name, m), side in zip(largest.items(), sides_BK.unbind(1), strict=True)})


def _middles(x: Tensor) -> Tensor:
    """Where the middles of the pixels are: x, y and 1, `(H, W, 3)`. (vmap has no rule for `F.affine_grid`.)"""
    height, width = (
        (2 * torch.arange(size, dtype=x.dtype, device=x.device) + 1) / size - 1 for size in (x.shape[2], x.shape[3])
    )
    return torch.stack([*torch.meshgrid(width, height, indexing="xy"), torch.ones_like(x[0, 0])], -1)


def check_ranges(setting: str, ranges: Mapping[str, float]) -> None:
    """Raise `ConfigError` unless these are strengths of operations that there are, and leave something of an image.

    Three times the largest is half a turn, or nine tenths of the width; far beyond, `scale` is no finite number.
    """
    for name, largest in ranges.items():
        if name not in LARGEST or not 0 <= largest <= 3 * LARGEST[name]:
            most = ", ".join(f"{known} to {3 * strongest:g}" for known, strongest in LARGEST.items())
            raise ConfigError(
                f"{setting} has {name}={largest:g}; it says how strong an operation may be, from 0 on, and there are "
                f"{most}."
            )
