"""Hypergradients: how what an optimisation comes to depends on the variables that its loss reads.

`attach` gives a constant a derivative of any making. `implicit_minimiser` has that of a minimum (iMAML). The four rules
return the weights that an inner training comes to as a function of the outer variables, so that the gradient of any
loss of these weights is the hypergradient:

| rule | derivative | cost of S inner steps, beside first order |
|---|---|---|
| `Unrolled` | exact, through every step | memory for S steps, S second derivatives |
| `FirstOrder` | none: the outer variables learn from what they do after the steps | - |
| `FiniteDifference` | of the last step, by a central difference (DARTS) | two gradients |
| `Implicit` | of a minimum, by a Neumann series or conjugate gradients | a second derivative for each term |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from lightning_meta.compat import tree_map
from lightning_meta.core.episode import Batch, Step
from lightning_meta.core.inner_loop import LossFn, Progress, descend, detach
from lightning_meta.core.inner_optimizer import InnerOptimizer, Params
from lightning_meta.core.repairs import Repaired
from lightning_meta.errors import ConfigError, require_at_least

Examples = Batch | Step


class BatchLoss(Protocol):
    """A scalar, of parameters and examples."""

    def __call__(self, params: Params, batch: Batch) -> Tensor: ...


class InnerLoss(Protocol):
    """A scalar, of outer variables, inner weights and examples. Under vmap it closes over no tensor of a task."""

    def __call__(self, outer: Params, weights: Params, batch: Any) -> Tensor: ...


class Pull(Protocol):
    """The gradient with respect to the outer variables, from that with respect to what is attached to them."""

    def __call__(self, gradient: Params, outer: Params, weights: Params, batch: Any) -> Params: ...


def attach(values: Params, outer: Params, pull: Pull, weights: Params, batch: Examples) -> Params:
    """Return `values`, as a function of `outer` whose derivative is what `pull` says.

    Args:
        values: constants.
        outer: what they are to depend on.
        pull: is called in the backward pass, with the gradient by the names of `values`, then `outer`, `weights` and
            `batch` as they are given here. Under vmap it may not close over a task's tensors: they come so.
        weights, batch: what `pull` needs of the task.
    """
    names = [*values], [*outer], [*weights]
    tensors = (*values.values(), *outer.values(), *weights.values(), *batch)
    return dict(zip(values, _Attached.apply(pull, names, type(batch), *tensors), strict=True))


class _Attached(torch.autograd.Function):
    """The identity on the values, whose backward pass is `pull`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        pull: Pull, names: tuple[list[str], ...], examples: type[Examples], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in tensors[: len(names[0])])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.pull, ctx.names, ctx.examples, *tensors = inputs
        ctx.save_for_backward(*tensors[len(ctx.names[0]) :])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        names, outer_names, weight_names = ctx.names
        saved = iter(ctx.saved_tensors)
        outer = {name: next(saved) for name in outer_names}
        weights = {name: next(saved) for name in weight_names}
        batch = ctx.examples(*saved)
        with Repaired():  # in the backward pass, which whoever mapped the tasks has left
            pulled = ctx.pull(dict(zip(names, gradients, strict=True)), outer, weights, batch)
        nothing = [None] * (len(weight_names) + len(batch))
        return None, None, None, *[None] * len(names), *(pulled[name] for name in outer_names), *nothing


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

    def solve(gradient: Params, outer: Params, weights: Params, batch: Batch) -> Params:
        hessian = vjp(grad(partial(loss, batch=batch)), weights)[1]

        def matvec(v: Params) -> Params:
            (image,) = hessian(v)
            return _add(v, 1 / (strength + damping), image)

        return conjugate_gradient(matvec, gradient, steps)

    return attach(phi, theta, solve, phi, batch)


@runtime_checkable  # the command line checks that a class is one
class Hypergradient(Protocol):
    """How the weights that an inner training comes to depend on the outer variables."""

    def __call__(
        self, loss: InnerLoss, outer: Params, progress: Progress, batches: Examples, optimizer: InnerOptimizer
    ) -> Params:
        """Take S inner steps and return the weights after them, as a function of `outer`.

        Args:
            loss: what the steps descend on.
            outer: its outer variables.
            progress: weights and state of the optimizer before.
            batches: `(S, B, ...)`, one for each step, and their keys `(S,)` if the loss draws.
            optimizer: of the inner training.
        """


def losses_of_steps(loss: InnerLoss, outer: Params, batches: Examples) -> list[LossFn]:
    """The loss of each step as a function of the weights alone."""

    def of(batch: Examples) -> LossFn:
        return lambda weights: loss(outer, weights, batch)

    return [of(type(batches)(*parts)) for parts in zip(*batches, strict=True)]


@dataclass(frozen=True)
class Unrolled:
    """The derivative through every step: exact; memory grows with their number."""

    def __call__(
        self, loss: InnerLoss, outer: Params, progress: Progress, batches: Examples, optimizer: InnerOptimizer
    ) -> Params:
        return descend(losses_of_steps(loss, outer, batches), progress, optimizer).params


@dataclass(frozen=True)
class FirstOrder:
    """No derivative: where the steps lead is a constant."""

    def __call__(
        self, loss: InnerLoss, outer: Params, progress: Progress, batches: Examples, optimizer: InnerOptimizer
    ) -> Params:
        losses = losses_of_steps(loss, detach(outer), batches)
        return detach(descend(losses, _detached(progress), optimizer, first_order=True).params)


@dataclass(frozen=True)
class FiniteDifference:
    """The derivative of the last step, by a central difference of gradients with respect to the outer variables.

    Liu, Simonyan, Yang: "DARTS: Differentiable Architecture Search" (2019), arXiv:1806.09055, equation 7.

    Deviation: the difference is taken for the inner gradient, and the optimizer is differentiated exactly; in the
    paper, for the weights, which is the same for gradient descent and right for no other optimizer.

    What the inner loss detaches is a constant for the other rules, but moves in the difference with the weights.

    Args:
        scale: the weights are moved by so much, in Euclidean norm. 0.01 is the paper's; in float32 far smaller ones
            drown in rounding.
    """

    scale: float = 0.01

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ConfigError(f"scale={self.scale} must be positive; the paper's is 0.01.")

    def __call__(
        self, loss: InnerLoss, outer: Params, progress: Progress, batches: Examples, optimizer: InnerOptimizer
    ) -> Params:
        first = losses_of_steps(loss, detach(outer), type(batches)(*(part[:-1] for part in batches)))
        last = type(batches)(*(part[-1] for part in batches))
        weights, state = _detached(descend(first, _detached(progress), optimizer, first_order=True))
        slopes, value = grad_and_value(loss, argnums=1)(detach(outer), weights, last)

        def pull(gradient: Params, outer: Params, weights: Params, batch: Any) -> Params:
            step = self.scale / _dot(gradient, gradient).sqrt().clamp_min(torch.finfo(value.dtype).tiny)
            up, down = (grad(loss)(outer, _add(weights, sign * step, gradient), batch) for sign in (1, -1))
            return {name: (up[name] - down[name]) / (2 * step) for name in up}

        slopes = attach(detach(slopes), outer, pull, weights, last)
        return optimizer.update(slopes, state, weights, value.detach())[0]


@dataclass(frozen=True)
class Implicit:
    """The derivative of a minimum of the inner loss, taken where the steps have led, on the batch of the last one.

    Lorraine, Vicol, Duvenaud: "Optimizing Millions of Hyperparameters by Implicit Differentiation" (2020),
    arXiv:1911.02590. With H the Hessian of the inner loss and v the gradient with respect to the weights, it is
    `-v H^-1 d2L / (d weights d outer)`. `neumann` takes `rate * sum_k (I - rate H)^k v`, k below `terms`, for
    `H^-1 v`; it converges where `rate` is below 2 over the largest eigenvalue of H. `cg` are conjugate gradients.

    Args:
        solver: `neumann` or `cg`.
        terms: of the series, or steps of conjugate gradients; each costs a product with H.
        rate: of the series.
        damping: added to the eigenvalues of H.
    """

    solver: Literal["neumann", "cg"] = "neumann"
    terms: int = 10
    rate: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(1, terms=self.terms)
        if self.solver not in ("neumann", "cg"):
            raise ConfigError(f"solver={self.solver!r} must be neumann or cg.")
        if not self.rate > 0 or self.damping < 0:
            raise ConfigError(f"rate={self.rate} must be positive and damping={self.damping} not negative.")

    def __call__(
        self, loss: InnerLoss, outer: Params, progress: Progress, batches: Examples, optimizer: InnerOptimizer
    ) -> Params:
        losses = losses_of_steps(loss, detach(outer), batches)
        weights = detach(descend(losses, _detached(progress), optimizer, first_order=True).params)
        last = type(batches)(*(part[-1] for part in batches))

        def pull(gradient: Params, outer: Params, weights: Params, batch: Any) -> Params:
            def slope(outer: Params, weights: Params) -> Params:
                return grad(loss, argnums=1)(outer, weights, batch)

            solved, _ = self.solve(lambda v: vjp(partial(slope, outer), weights)[1](v)[0], gradient)
            (pulled,) = vjp(lambda outer: slope(outer, weights), outer)[1](solved)
            return {name: -value for name, value in pulled.items()}

        return attach(weights, outer, pull, weights, last)

    def solve(self, hessian: Callable[[Params], Params], v: Params) -> tuple[Params, Tensor]:
        """`H^-1 v`, nearly; and how long the last term of the series is, the first being 1 (0 for `cg`)."""

        def product(v: Params) -> Params:
            return _add(hessian(v), self.damping, v)

        length = _dot(v, v).sqrt()
        if self.solver == "cg":
            return conjugate_gradient(product, v, self.terms), torch.zeros_like(length)
        term = total = v
        for _ in range(self.terms - 1):
            term = _add(term, -self.rate, product(term))
            total = _add(total, 1.0, term)
        return {name: self.rate * value for name, value in total.items()}, _ratio(_dot(term, term).sqrt(), length)

    def last_term(self, loss: InnerLoss, outer: Params, weights: Params, batch: Any, gradient: Params) -> Tensor:
        """How long the last term of the series would be for this gradient: above 1, the series diverges."""
        slope = partial(grad(loss, argnums=1), detach(outer), batch=batch)
        return self.solve(lambda v: vjp(slope, detach(weights))[1](v)[0], detach(gradient))[1].detach()


def _detached(progress: Progress) -> Progress:
    return tree_map(torch.Tensor.detach, progress)


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _add(a: Params, scale: Tensor | float, b: Params) -> Params:
    return {name: value + scale * b[name] for name, value in a.items()}


def _ratio(a: Tensor, b: Tensor, otherwise: float = 0.0) -> Tensor:
    """`a / b` where b is positive."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), otherwise)
