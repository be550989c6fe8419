"""Map a function of ONE task over a meta-batch: vectorised, in chunks, or task by task."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

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
    n_tasks = len(tree_leaves(tasks)[0])
    results = [fn(*tree_map(lambda leaf: leaf[t], tasks)) for t in range(n_tasks)]  # noqa: B023 - used at once
    return tree_map(lambda *leaves: torch.stack(leaves), *results)
