"""Map a function of ONE task over a meta-batch: vectorised, in chunks, or task by task."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_meta.compat import (
    TransformType,
    get_interpreter_stack,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)
from lightning_meta.core.episode import TaskOutput

TaskMode = Literal["auto", "vmap", "loop"]

# On a CPU, a convolution with weights of its own for every task runs as a grouped convolution, which is slower than a
# loop once a task's input is large (75 queries of 28x28) and faster while it is small (5). Values per task, not bytes.
LARGEST_CPU_VMAP_INPUT = 16_384


def choose_mode(mode: TaskMode, x: Tensor) -> Literal["vmap", "loop"]:
    """Resolve `auto` for the input `x` of shape (T, ...): loop for a single task, and on a CPU for large inputs."""
    if mode != "auto":
        return mode
    if len(x) == 1 or (x.device.type == "cpu" and x[0].numel() > LARGEST_CPU_VMAP_INPUT):
        return "loop"
    return "vmap"


def count_tasks(tasks: Any) -> int:
    """How many tasks a meta-batch has: a pytree with a leading task axis T, or a list of them, see `Tasks`."""
    return sum(len(tree_leaves(part)[0]) for part in (tasks if isinstance(tasks, list) else [tasks]))


def map_tasks(
    fn: Callable[..., Any], *tasks: Any, mode: Literal["vmap", "loop"] = "vmap", chunk_size: int | None = None
) -> Any:
    """Apply `fn` to each task of the pytrees `tasks`, whose leaves have a leading task axis T; stack the results.

    Args:
        fn: pure function of one task's pytrees, returning a pytree of tensors.
        tasks: pytrees with a leading task axis on every leaf.
        mode: `vmap` vectorises over tasks (random operations draw anew for each task); `loop` calls `fn` T times and
            serves operations that vmap cannot batch. Both give the same values and gradients.
        chunk_size: with `vmap`, how many tasks run at once; fewer need less memory. None: all.
    """
    if mode == "vmap":
        return torch.vmap(fn, randomness="different", chunk_size=chunk_size)(*tasks)
    return _stack(fn(*task) for task in _unstack(tasks))


def loop_with_gradients(fn: Callable[..., TaskOutput], params: Iterable[Tensor], *tasks: Any) -> TaskOutput:
    """As `map_tasks` in mode `loop`, but by `with_gradient`, so that memory does not grow with the number of tasks."""
    params = list(params)
    return _stack(with_gradient(fn, params, *task) for task in _unstack(tasks))


def with_gradient(fn: Callable[..., TaskOutput], params: Iterable[Tensor], *task: Any) -> TaskOutput:
    """`fn(*task)`, taking the gradient of its loss at once and freeing its graph.

    Of the result, `loss` alone can be differentiated, and once.

    Args:
        fn: pure function of one task's pytrees.
        params: what the loss depends on beside the task.
        task: pytrees of tensors.
    """
    trained = [param for param in params if param.requires_grad]
    leaves, structure = tree_flatten(task)
    made: list[TaskOutput] = []

    def play(*leaves: Tensor) -> TaskOutput:
        made.append(fn(*tree_unflatten(list(leaves), structure)))
        return made[0]

    loss = _LossWithGradient.apply(play, len(trained), *trained, *leaves)
    return tree_map(Tensor.detach, made[0])._replace(loss=loss)


class _LossWithGradient(torch.autograd.Function):
    """The loss of one task, whose gradient is known before anybody asks for it."""

    @staticmethod
    def forward(ctx: Any, play: Callable[..., TaskOutput], n_trained: int, *inputs: Tensor) -> Tensor:
        trained, leaves = inputs[:n_trained], inputs[n_trained:]
        # Leaves of their own: the graph that made them is not walked here.
        leaves = tuple(leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves)
        sources = [source for source in (*trained, *leaves) if source.requires_grad]
        with torch.enable_grad():
            loss = play(*leaves).loss
            # A loss may be constant: that of Reptile in evaluation is.
            found = (
                torch.autograd.grad(loss, sources, allow_unused=True) if loss.requires_grad else [None] * len(sources)
            )
        gradients = iter(found)
        # Contiguous: a layout that is fast for the query set would slow down second derivatives.
        ctx.save_for_backward(
            *(_contiguous(next(gradients)) if source.requires_grad else None for source in (*trained, *leaves))
        )
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if saved is None else grad_loss * saved for saved in ctx.saved_tensors)


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()


def _unstack(tasks: tuple[Any, ...]) -> Iterator[list[Any]]:
    """The tasks one by one. Not by `leaf[t]`, whose backward fills a tensor of all tasks for each of them."""
    leaves, structure = tree_flatten(tasks)
    return (tree_unflatten(list(rows), structure) for rows in zip(*(leaf.unbind() for leaf in leaves), strict=True))


def _stack(results: Iterable[Any]) -> Any:
    return tree_map(lambda *leaves: torch.stack(leaves), *results)


def active_transforms() -> set[TransformType]:
    """The transforms of `torch.func` (`Vmap`, `Grad`, ...) under which the caller runs.

    While `torch.compile` traces they cannot be told, so they are taken to be those of an inner loop over tasks.
    """
    if torch.compiler.is_compiling():
        return {TransformType.Vmap, TransformType.Grad}
    return {interpreter.key() for interpreter in get_interpreter_stack() or ()}
