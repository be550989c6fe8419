"""The inner loop: adapt parameters to one task by gradient descent that can itself be differentiated."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.func import grad_and_value

from lightning_meta.core.inner_optimizer import InnerOptimizer, Params
from lightning_meta.core.task_map import active_transforms

LossFn = Callable[[Params], Tensor]


class Progress(NamedTuple):
    """Where an optimization has come to: the parameters, and the state of the optimizer."""

    params: Params
    state: Any


@overload
def unroll(
    loss_fn: LossFn | Sequence[LossFn],
    params: Params,
    optimizer: InnerOptimizer,
    steps: int,
    first_order: bool = ...,
    trajectory: Literal[False] = ...,
) -> Params: ...
@overload
def unroll(
    loss_fn: LossFn | Sequence[LossFn],
    params: Params,
    optimizer: InnerOptimizer,
    steps: int,
    first_order: bool = ...,
    *,
    trajectory: Literal[True],
) -> list[Params]: ...
def unroll(
    loss_fn: LossFn | Sequence[LossFn],
    params: Params,
    optimizer: InnerOptimizer,
    steps: int,
    first_order: bool = False,
    trajectory: bool = False,
) -> Params | list[Params]:
    """Take `steps` adaptation steps on `loss_fn`, starting from `params`.

    Args:
        loss_fn: support loss (scalar) as a function of the parameters, or one such function for each step
            (mini-batches).
        params: theta, by name. Gradients with respect to theta flow through every step.
        optimizer: the update rule.
        steps: number of steps; 0 returns `params`.
        first_order: treat the inner gradients as constants (FOMAML). torch.func has no `create_graph=False`; taking
            them at a detached point records no graph in the first place.
        trajectory: return the parameters before the first and after every step (`steps + 1` of them), not the last.
    """
    losses = loss_fn if isinstance(loss_fn, Sequence) else [loss_fn] * steps
    progress = Progress(params, optimizer.init(params))
    path = [params]
    for _, loss_of_step in zip(range(steps), losses, strict=True):
        progress = descend([loss_of_step], progress, optimizer, first_order)
        path = [*path, progress.params] if trajectory else [progress.params]
    return path if trajectory else path[-1]


def descend(
    losses: Sequence[LossFn], progress: Progress, optimizer: InnerOptimizer, first_order: bool = False
) -> Progress:
    """Go on from `progress` by one step on each of `losses`. The arguments are those of `unroll`."""
    params, state = progress
    for loss_fn in losses:
        params, state, _, _ = _step(loss_fn, params, optimizer, state, first_order)
    return Progress(params, state)


def take_step(
    loss_fn: LossFn, params: Params, optimizer: InnerOptimizer, state: Any, first_order: bool = False
) -> tuple[Params, Any, Tensor]:
    """One step of `optimizer` on `loss_fn`: the parameters after it, the next state, and the loss before it.

    With `first_order` the optimizer gets gradient and loss as constants. The loss that is returned has its gradient
    with respect to `params` nevertheless, which was taken already.
    """
    moved, state, loss, grads = _step(loss_fn, params, optimizer, state, first_order)
    return moved, state, with_constant_gradient(loss, grads, params) if first_order else loss


def _step(
    loss_fn: LossFn, params: Params, optimizer: InnerOptimizer, state: Any, first_order: bool
) -> tuple[Params, Any, Tensor, Params]:
    """As `take_step`, but with `first_order` the loss is a constant; and the gradient."""
    grads, loss = constant_gradient(loss_fn, params) if first_order else grad_and_value(loss_fn)(params)
    return *optimizer.update(grads, state, params, loss), loss, grads


def constant_gradient(loss_fn: LossFn, params: Params) -> tuple[Params, Tensor]:
    """Gradient and loss at a point, as constants.

    Where no other transform is active it is taken without torch.func, so that layers may use what is fast but does not
    work under its transforms (memory layouts, fused normalisation).
    """
    if active_transforms():
        grads, loss = grad_and_value(loss_fn)(detach(params))
        return detach(grads), loss.detach()
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        loss = loss_fn(leaves)
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True)), loss.detach()


def follow(
    losses: Sequence[LossFn], progress: Progress, optimizer: InnerOptimizer, first_order: bool = False
) -> tuple[Progress, Tensor]:
    """Go on from `progress` by one step on each of `losses` but the last, which judges where the others led.

    Args:
        losses: of S steps and the end; `S + 1` functions of the parameters.
        progress: where to start. Gradients flow through it.
        optimizer: the update rule.
        first_order: gradients of the losses are constants for the optimizer, as in `take_step`.

    Returns:
        Where the steps led, and the losses on the way, `(S + 1,)`, the first one at the start.
    """
    *on_the_way, last = losses
    params, state = progress
    values = []
    for loss_fn in on_the_way:
        params, state, loss = take_step(loss_fn, params, optimizer, state, first_order)
        values.append(loss)
    return Progress(params, state), torch.stack([*values, last(params)])


def with_constant_gradient(value: Tensor, grads: Params, params: Params) -> Tensor:
    """The constant `value` (scalar) as a function of `params` that has the constant `grads` as its gradient there."""
    for name, param in params.items():
        value = value + (grads[name] * (param - param.detach())).sum()
    return value


def detach(params: Params) -> Params:
    return {name: value.detach() for name, value in params.items()}
