"""Hypergradients: differentiate through the result of an optimisation without the path that led there."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, vjp

from lightning_meta.core.episode import Batch
from lightning_meta.core.inner_optimizer import Params
from lightning_meta.core.repairs import Repaired


class BatchLoss(Protocol):
    """A scalar, of parameters and examples."""

    def __call__(self, params: Params, batch: Batch) -> Tensor: ...


def conjugate_gradient(matvec: Callable[[Params], Params], b: Params, steps: int) -> Params:
    """Solve `A x = b` for a symmetric `A` by conjugate gradients from zero; exact after as many steps as dimensions.

    Every task of a meta-batch takes the same number of steps: one that has converged stays where it is. So does one
    that meets a direction of non-positive curvature, where the method breaks down; at the very first, x is b.

    Args:
        matvec: `A v` for any `v`.
        b: right-hand side, by name.
        steps: iterations, each with one product.
    """
    x = {name: torch.zeros_like(value) for name, value in b.items()}
    residual = direction = b
    norm = _dot(residual, residual)
    for step in range(steps):
        image = matvec(direction)
        curvature = _dot(direction, image)
        rate = _ratio(norm, curvature, otherwise=0.0 if step else 1.0)
        x = _add(x, rate, direction)
        residual = _add(residual, -rate, image)
        last, norm = norm, _dot(residual, residual)
        direction = _add(residual, _ratio(norm, last), direction)
        direction = {name: value * (curvature > 0) for name, value in direction.items()}
    return x


def implicit_minimiser(
    loss: BatchLoss,
    phi: Params,
    theta: Params,
    batch: Batch,
    strength: float,
    steps: int,
    damping: float = 0.0,
) -> Params:
    """Return `phi`, the minimiser of `loss(phi, batch) + strength / 2 |phi - theta|^2`, as a function of `theta`.

    Its derivative is that of the minimum, whatever way `phi` was found: by the implicit function theorem, a gradient
    `g` with respect to `phi` becomes `(I + H / strength)^-1 g` with respect to `theta`, where `H` is the Hessian of
    `loss` at `phi`. Conjugate gradients solve for it in the backward pass, and in that pass only.

    Args:
        loss: of parameters and data. Under vmap it may not close over a task's tensors: they come as `batch`.
        phi: (approximate) minimiser, detached.
        theta: where the proximal term pulls to; same names and shapes.
        batch: data of the loss.
        strength: of the proximal term (lambda).
        steps: conjugate-gradient iterations.
        damping: added to `strength` in the linear system. It outweighs negative curvature, met where `phi` is no
            minimum, and moves the derivative towards the identity (first order).
    """

    def solve(g: Params, phi: Params, batch: Batch) -> Params:
        with Repaired():  # in the backward pass, which whoever mapped the tasks has left
            hessian = vjp(grad(partial(loss, batch=batch)), phi)[1]

        def matvec(v: Params) -> Params:
            (image,) = hessian(v)
            return _add(v, 1 / (strength + damping), image)

        return conjugate_gradient(matvec, g, steps)

    names = list(phi)
    tensors = (*(phi[name] for name in names), *(theta[name] for name in names), *batch)
    return dict(zip(names, _Implicit.apply(solve, names, *tensors), strict=True))


class _Implicit(torch.autograd.Function):
    """The identity on phi, whose backward pass solves for the gradient with respect to theta."""

    generate_vmap_rule = True

    @staticmethod
    def forward(solve: Callable[..., Params], names: list[str], *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in tensors[: len(names)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.solve, ctx.names, *tensors = inputs
        n = len(ctx.names)
        ctx.save_for_backward(*tensors[:n], *tensors[2 * n :])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *values, x, y = ctx.saved_tensors
        names = ctx.names
        phi, g = (dict(zip(names, tensors, strict=True)) for tensors in (values, grads))
        solution = ctx.solve(g, phi, Batch(x, y))
        return (None, None, *(None for _ in names), *(solution[name] for name in names), None, None)


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _add(a: Params, scale: Tensor | float, b: Params) -> Params:
    return {name: value + scale * b[name] for name, value in a.items()}


def _ratio(a: Tensor, b: Tensor, otherwise: float = 0.0) -> Tensor:
    """`a / b` where b is positive."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), otherwise)
