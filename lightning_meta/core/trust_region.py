"""A step along the natural gradient that moves a policy no further than a limit.

Schulman, Levine, Abbeel, Jordan, Moritz: "Trust Region Policy Optimization" (2015), arXiv:1502.05477, appendix C.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta import ranks
from lightning_meta.core.hypergradient import conjugate_gradient
from lightning_meta.core.inner_loop import Params


class TrustRegionStep(NamedTuple):
    """Where a step led.

    Attributes:
        theta: the new weights; the old ones where no length of the step was good.
        divergence: of the new from the old.
        length: part of the longest step that was taken; 0 where none was.
    """

    theta: Params
    divergence: Tensor
    length: float


def trust_region_step(
    measure: Callable[[Params], tuple[Tensor, Tensor]],
    theta: Params,
    max_divergence: float = 0.01,
    cg_steps: int = 10,
    damping: float = 1e-5,
    shrink: float = 0.8,
    tries: int = 15,
) -> TrustRegionStep:
    """Go from `theta` along `F^-1 g`, g the gradient of the loss and F the Hessian of the divergence.

    The longest step is the one whose divergence would be the limit if it were quadratic. It is made shorter until the
    true one is within the limit and the loss is lower.

    Args:
        measure: the loss at some weights, and how far they are from `theta`: at `theta` the divergence is 0 and least.
            Of the tasks of this process; means over processes are taken here, and every one must call it.
        theta: weights by name.
        max_divergence: the limit, in nats.
        cg_steps: of conjugate gradients, which solve for `F^-1 g`.
        damping: added to the diagonal of F.
        shrink: factor by which the step is made shorter.
        tries: lengths that are tried.
    """
    here = {name: value.detach().requires_grad_() for name, value in theta.items()}
    names, values = list(here), list(here.values())
    with torch.enable_grad():
        loss, divergence = measure(here)
        gradient = _means(names, torch.autograd.grad(loss, values, retain_graph=True))
        slopes = torch.autograd.grad(divergence, values, create_graph=True)

    def product(v: Params) -> Params:
        along = torch.stack([(slope * v[name]).sum() for name, slope in zip(names, slopes, strict=True)]).sum()
        image = _means(names, torch.autograd.grad(along, values, retain_graph=True))
        return {name: image[name] + damping * v[name] for name in names}

    direction = conjugate_gradient(product, gradient, cg_steps)
    image = product(direction)
    curvature = torch.stack([(direction[name] * image[name]).sum() for name in names]).sum()
    longest = (2 * max_divergence / curvature.clamp_min(torch.finfo(curvature.dtype).tiny)).sqrt()
    start, length = ranks.mean(loss.detach()), 1.0
    for _ in range(tries):
        there = {name: here[name].detach() - length * longest * direction[name] for name in names}
        # An inner loop adapts what requires a gradient.
        there = {name: value.requires_grad_() for name, value in there.items()}
        with torch.no_grad():
            new_loss, moved = map(ranks.mean, measure(there))
        if new_loss < start and moved <= max_divergence:
            return TrustRegionStep(_constants(there), moved, length)
        length *= shrink
    return TrustRegionStep(_constants(here), torch.zeros_like(start), 0.0)


def _constants(theta: Params) -> Params:
    return {name: value.detach() for name, value in theta.items()}


def _means(names: list[str], values: tuple[Tensor, ...]) -> Params:
    return {name: ranks.mean(value) for name, value in zip(names, values, strict=True)}
