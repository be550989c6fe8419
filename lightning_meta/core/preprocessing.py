"""How gradients and losses, whose sizes span many orders, become inputs of a network."""

import math

import torch
from torch import Tensor


def log_and_sign(x: Tensor, p: float = 10.0) -> Tensor:
    """Size and sign of `x` as two numbers in a new last axis (Andrychowicz et al. 2016, arXiv:1606.04474, appendix A).

    `(log|x| / p, sign(x))` where `|x| >= e^-p`, else `(-1, e^p x)`: numbers that are too small for their logarithm to
    matter enter linearly.
    """
    return torch.stack([x.abs().clamp_min(math.exp(-p)).log() / p, (x * math.exp(p)).clamp(-1, 1)], dim=-1)
