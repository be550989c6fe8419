"""Stein variational gradient descent: copies of the parameters that descend together and keep apart.

Liu, Wang: "Stein Variational Gradient Descent: A General Purpose Bayesian Inference Algorithm" (2016),
arXiv:1608.04471, algorithm 1.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from lightning_meta.core.inner_optimizer import Params, Rule, of


@dataclass(frozen=True)
class SVGD(Rule):
    """Moves M particles, the first axis of every parameter, towards a sample of `exp(-loss / temperature)`.

    The loss is the sum of those of the particles, so that its gradient is each particle's own. With one particle this
    is gradient descent with the same rate. The kernel is a Gaussian of the distance between all weights of two
    particles; its width is the median heuristic, a constant for the gradient.

    Attributes:
        lr: step size, one or by parameter name.
        temperature: how strongly particles keep apart.
    """

    lr: float | Params
    temperature: float = 1.0

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(self, grads: Params, state: tuple[()], params: Params, loss: Tensor) -> tuple[Params, tuple[()]]:
        x_MP = torch.cat([value.flatten(1) for value in params.values()], 1)
        kernel_MM, width = gaussian_kernel(x_MP)
        # The gradient of the kernel with respect to the other particle, summed over all others.
        apart = self.temperature * 2 / width
        moved = {}
        for name, value in params.items():
            x, force = value.flatten(1), -grads[name].flatten(1)
            repulsion = apart * (kernel_MM.sum(1, keepdim=True) * x - kernel_MM @ x)
            direction = (kernel_MM @ force + repulsion) / len(x)
            moved[name] = value + of(self.lr, name) * direction.view(value.shape)
        return moved, state


def gaussian_kernel(x_MP: Tensor) -> tuple[Tensor, Tensor]:
    """`exp(-d^2 / h)` between particles `(M, M)`, and h, the median of d^2 between two of them over `log(M + 1)`."""
    square_M = x_MP.square().sum(1)
    distance_MM = (square_M[:, None] + square_M - 2 * x_MP @ x_MP.T).clamp_min(0)
    distance_MM = distance_MM * (1 - torch.eye(len(x_MP), dtype=x_MP.dtype, device=x_MP.device))
    if len(x_MP) == 1:
        return torch.ones_like(distance_MM), torch.ones_like(square_M[0])
    first, second = torch.triu_indices(len(x_MP), len(x_MP), 1, device=x_MP.device)
    between = distance_MM.detach()[first, second].sort().values
    width = between[len(between) // 2].clamp_min(torch.finfo(x_MP.dtype).tiny) / log(len(x_MP) + 1)
    return (-distance_MM / width).exp(), width
