"""Kernels of examples and what is solved with them: ridge regression in closed form, differentiable twice.

`fc_ntk` is the neural tangent kernel of an infinitely wide network of fully connected layers with ReLU: Jacot, Gabriel,
Hongler (2018), arXiv:1806.07572, with the arc-cosine kernels of Cho and Saul (2009).
"""

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]  # rows (A, D) and (B, D) to (A, B)


def fc_ntk(a_AD: Tensor, b_BD: Tensor, hidden: int = 1, w_std: float = 2**0.5, b_std: float = 0.1) -> Tensor:
    """The neural tangent kernel `(A, B)` of a network with so many hidden layers.

    Weights are drawn with deviation `w_std / fan_in^0.5` and biases with `b_std`; the defaults are those of the authors
    of KIP. Where both arguments are one tensor, an example is exactly similar to itself, and its derivative is right.
    """
    same = a_AD is b_BD
    features = a_AD.shape[1]
    kernel_AB = w_std**2 * a_AD @ b_BD.T / features + b_std**2
    variances_A, variances_B = (w_std**2 * x.square().sum(1) / features + b_std**2 for x in (a_AD, b_BD))
    itself_AB = torch.eye(len(a_AD), dtype=torch.bool, device=a_AD.device) if same else None
    tangent_AB = kernel_AB
    for _ in range(hidden):
        length_AB = (variances_A[:, None] * variances_B).sqrt()
        cosine_AB = (kernel_AB / length_AB).clamp(-1, 1)
        if itself_AB is not None:  # the slope of arccos is infinite at 1, where the angle does not move
            cosine_AB = cosine_AB.masked_fill(itself_AB, 0)
        angle_AB = cosine_AB.arccos()
        rest_AB = pi - angle_AB
        moved_AB = (angle_AB.sin() + rest_AB * cosine_AB) / pi
        if itself_AB is not None:
            moved_AB, rest_AB = moved_AB.masked_fill(itself_AB, 1), rest_AB.masked_fill(itself_AB, pi)
        kernel_AB = w_std**2 / 2 * length_AB * moved_AB + b_std**2
        tangent_AB = kernel_AB + w_std**2 / 2 * tangent_AB * rest_AB / pi
        variances_A, variances_B = (w_std**2 / 2 * v + b_std**2 for v in (variances_A, variances_B))
    return tangent_AB


def rbf(a_AD: Tensor, b_BD: Tensor, gamma: float = 1.0) -> Tensor:
    """`exp(-gamma |a - b|^2 / D)`, `(A, B)`."""
    squares = a_AD.square().sum(1)[:, None] + b_BD.square().sum(1) - 2 * a_AD @ b_BD.T
    return (-gamma * squares.clamp_min(0) / a_AD.shape[1]).exp()


def ridge_coefficients(kernel_AA: Tensor, targets_AC: Tensor, ridge: float) -> Tensor:
    """`(K + ridge mean(diagonal) I)^-1 y`, `(A, C)`: predictions are products of kernels with it."""
    strength = ridge * kernel_AA.diagonal().mean()
    return torch.linalg.solve(kernel_AA + strength * torch.eye(len(kernel_AA)).to(kernel_AA), targets_AC)
