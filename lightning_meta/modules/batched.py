"""Algorithms that play a whole meta-batch in one call of their hooks."""

from typing import Any, TypeVar

import torch

from lightning_meta.compat import tree_leaves, tree_map, tree_structure, tree_unflatten
from lightning_meta.core import Batch, Episode, TaskOutput
from lightning_meta.modules.episodic import EpisodicModule

Adapted = TypeVar("Adapted")


class BatchedModule(EpisodicModule[Adapted]):
    """Base of algorithms whose hooks take one task, or a meta-batch as it is, with a task axis T before all others.

    For networks that treat every row of their input alike, and no derivatives within a task: one call on all rows does
    what a mapped call does, without the cost of mapping, and may use what `torch.vmap` cannot batch, such as `nn.LSTM`.
    A hook counts axes from the end and must not mix tasks.

    `task_chunk_size` is how many tasks are played at once; with `task_mode: loop` it is one.
    """

    def play(self, tasks: Episode) -> TaskOutput:
        size = 1 if self.task_mode == "loop" else self.task_chunk_size or len(tasks.support.x)
        chunks = zip(*(leaf.split(size) for leaf in tree_leaves(tasks)), strict=True)
        parts = [self._play_chunk(tree_unflatten(list(chunk), tree_structure(tasks))) for chunk in chunks]
        return tree_map(lambda *leaves: torch.cat(leaves), *parts)

    def _play_chunk(self, tasks: Episode) -> TaskOutput:
        return self.query_tasks(self.adapt_tasks(tasks.support), tasks.query)

    def adapt_tasks(self, support: Batch) -> Any:
        with self.adapt_precision():
            return self.adapt(support)

    def query_tasks(self, adapted: Any, query: Batch) -> TaskOutput:
        return self.query_loss(adapted, query)
