"""The inner loop: adapt parameters to one task by gradient descent that can itself be differentiated."""

from collections.abc import Callable, Sequence
from typing import Literal, overload

from torch import Tensor
from torch.func import grad

from lightning_meta.core.inner_optimizer import InnerOptimizer, Params

LossFn = Callable[[Params], Tensor]


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
    state = optimizer.init(params)
    path = [params]
    for _, loss_of_step in zip(range(steps), losses, strict=True):
        point = detach(params) if first_order else params
        grads = grad(loss_of_step)(point)
        params, state = optimizer.update(detach(grads) if first_order else grads, state, params)
        path.append(params)
    return path if trajectory else params


def detach(params: Params) -> Params:
    return {name: value.detach() for name, value in params.items()}
