"""Distributions of a number as bars, that a classifier can predict: a regression without the form of a normal curve.

The "Riemann distribution" of Müller, Hollmann, Pineda Arango, Grabocka, Hutter: "Transformers Can Do Bayesian
Inference" (2021), arXiv:2112.10510, section 5: the density is constant within a bar, and no value is impossible.

Deviation: beyond the outermost borders the density falls off by a power, not as a normal curve does. Where few targets
are known that are nearly the same, others are many of their standard deviations away.
"""

import math

import torch
from torch import Tensor, nn

POWER = 3  # of the tails: the probability of a distance d and more is (1 + d / std) ** -POWER


class Bars(nn.Module):
    """What `B` logits say of a number.

    The bars between are equally likely under a normal distribution, and so are the two tails beyond the outermost ones.

    Args:
        count: B, 4 or more.
        std: of that normal distribution, whose mean is 0. In the tails the distance from the border has this
            root mean square.
    """

    borders: Tensor

    def __init__(self, count: int, std: float = 1.5) -> None:
        super().__init__()
        self.count, self.std = count, std
        self.register_buffer("borders", torch.special.ndtri(torch.arange(1, count) / count) * std, persistent=False)

    def log_density(self, logits_B: Tensor, values: Tensor) -> Tensor:
        """Of values `(...)` under logits `(..., B)`, in nats."""
        first, last = self.borders[0], self.borders[-1]
        which = torch.bucketize(values.contiguous(), self.borders)
        beyond = torch.where(values < first, first - values, values - last).clamp_min(0)
        tail = math.log(POWER / self.std) - (POWER + 1) * (beyond / self.std).log1p()
        width = self.borders.diff()[(which - 1).clamp(0, self.count - 3)]
        height = torch.where((which == 0) | (which == self.count - 1), tail, -width.log())
        return logits_B.log_softmax(-1).gather(-1, which.unsqueeze(-1)).squeeze(-1) + height

    def moments(self, logits_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(...)` of distributions `(..., B)`."""
        share_B, (first, last) = logits_B.softmax(-1), (self.borders[0], self.borders[-1])
        left, right, far = self.borders[:-1], self.borders[1:], self.std / (POWER - 1)
        mean_B = torch.cat([(first - far)[None], (left + right) / 2, (last + far)[None]])
        tails = [border.square() + 2 * border.abs() * far + self.std**2 for border in (first, last)]
        square_B = torch.cat([tails[0][None], (left.square() + left * right + right.square()) / 3, tails[1][None]])
        mean = (share_B * mean_B).sum(-1)
        return mean, ((share_B * square_B).sum(-1) - mean.square()).clamp_min(0).sqrt()
