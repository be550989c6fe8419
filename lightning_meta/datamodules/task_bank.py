"""Tasks that are groups of rows, held in memory: pupils of a school, measurements of a machine, ratings of a user."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import Keys, choose, subkeys
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError


@dataclass(frozen=True)
class TaskBank(TaskSource):
    """Rows with numbers as targets. An episode is a task, drawn at random, and some of its rows.

    Attributes:
        inputs: `(E, ...)`, the rows of a task side by side.
        targets: `(E, Y)`.
        first: `(tasks,)` index of each task's first row.
        size: `(tasks,)` number of rows of each task.
    """

    inputs: Tensor
    targets: Tensor
    first: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    @classmethod
    def from_tasks(cls, tasks: Sequence[Batch]) -> "TaskBank":
        """Build from the rows of each task, `(rows, ...)` and `(rows, Y)`."""
        size = np.array([len(task.y) for task in tasks])
        return cls(torch.cat([task.x for task in tasks]), torch.cat([task.y for task in tasks]), starts(size), size)

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"targets are numbers, one task is one regression: n_way must be 1, not {shape.n_way}.")
        needed, fewest = shape.k_shot + shape.n_query, int(self.size.min(initial=2**31))
        if needed > fewest:
            small = int((self.size < needed).sum())
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} rows are needed of every task, but {small} of "
                f"{len(self.size)} tasks have fewer, the smallest {fewest}; lower k_shot or n_query, or leave small "
                "tasks out: --data.skip_small true."
            )

    def draw(self, keys: Keys, shape: EpisodeShape) -> Tensor:
        """Where the rows of each episode are, `(T, K + Q)`, in the order of use."""
        task_key, row_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        task_T = choose(task_key, len(self.size), 1)[..., 0]
        rows_TM = choose(row_key, self.size[task_T], shape.k_shot + shape.n_query)
        return torch.from_numpy(self.first[task_T][:, None] + rows_TM).to(self.inputs.device)

    def make(self, drawn: Tensor, shape: EpisodeShape) -> Episode:
        """Support `(T, K, ...)` and query `(T, Q, ...)` rows with their targets `(T, K, Y)` and `(T, Q, Y)`."""
        x_TM, y_TM = self.inputs[drawn], self.targets[drawn]
        k = shape.k_shot
        return Episode(Batch(x_TM[:, :k], y_TM[:, :k]), Batch(x_TM[:, k:], y_TM[:, k:]))

    def to(self, device: torch.device) -> "TaskBank":
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class GroupedClassBank(ClassBank):
    """Rows with classes as targets. An episode's classes are all of one task, drawn at random.

    Attributes:
        classes: `(tasks,)` how many classes each task has; those of a task are side by side.
    """

    classes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def from_tasks(cls, tasks: Sequence[Sequence[Tensor]]) -> "GroupedClassBank":
        """Build from the rows `(rows, ...)` of each class of each task."""
        bank = ClassBank.from_ragged([rows for classes in tasks for rows in classes])
        return cls(bank.inputs, bank.first, bank.size, classes=np.array([len(classes) for classes in tasks]))

    def check(self, shape: EpisodeShape) -> None:
        super().check(shape)
        if shape.n_way > self.classes.min(initial=2**31):
            small = int((self.classes < shape.n_way).sum())
            raise ConfigError(
                f"n_way={shape.n_way} classes are needed of every task, but {small} of {len(self.classes)} tasks have "
                f"fewer, the smallest {self.classes.min()}; lower n_way, or leave those tasks out."
            )

    def joined(self, other: ClassBank) -> "GroupedClassBank":
        both = super().joined(other)
        assert isinstance(both, GroupedClassBank) and isinstance(other, GroupedClassBank)
        return replace(both, classes=np.concatenate([self.classes, other.classes]))

    @cached_property
    def _first_class(self) -> npt.NDArray[np.int64]:
        return starts(self.classes)

    def _draw_classes(self, keys: Keys, n_way: int) -> npt.NDArray[np.int64]:
        task_key, class_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        task_T = choose(task_key, len(self.classes), 1)[..., 0]
        return self._first_class[task_T][:, None] + choose(class_key, self.classes[task_T], n_way)


def starts(size: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Index of the first member of groups of these sizes that follow one another."""
    return size.cumsum() - size
