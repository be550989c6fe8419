"""Test episodes once more, for callbacks that look closer at some of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl

from lightning_meta.core import Episode, TaskOutput
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.modules import EpisodicModule

Tasks = TypeVar("Tasks")


class Replay:
    """Plays frozen test episodes as the test played them, but on one process: nothing here communicates.

    For use in `on_test_end`, where the Trainer still has the module in evaluation mode without gradients.
    """

    def __init__(self, trainer: pl.Trainer, module: EpisodicModule[Any], datamodule: EpisodicDataModule) -> None:
        self.trainer, self.module, self.datamodule = trainer, module, datamodule

    @property
    def title(self) -> str:
        """What was tested, for a picture."""
        data = self.datamodule
        return f"{type(self.module).__name__} on {data.name}, {data.describe('test')}"

    def episodes(self, ids: Sequence[int]) -> Episode:
        """The test episodes `ids` as one meta-batch, in the trainer's precision and on its device."""
        return self.to_device(self.datamodule.dataset("test").__getitems__(ids))

    def class_names(self, episode: int) -> dict[int, str] | None:
        """The names of the classes of a test episode by their labels; None where they have none."""
        data = self.datamodule
        return data.names_in("test", episode) if isinstance(data, ClassificationDataModule) else None

    def to_device(self, tasks: Episode) -> Episode:
        return to_device(self.trainer, tasks)

    def play(self, tasks: Episode, inner_steps: int | None = None) -> TaskOutput:
        """Adapt and predict; `inner_steps` replaces the module's `eval_inner_steps` for this call."""
        with self.trainer.precision_plugin.test_step_context(), eval_inner_steps(self.module, inner_steps):
            return self.module.play(tasks)


def to_device(trainer: pl.Trainer, tasks: Tasks) -> Tasks:
    """The same tasks in the trainer's precision and on its device."""
    return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(tasks))


@contextmanager
def eval_inner_steps(module: Any, steps: int | None) -> Iterator[None]:
    if steps is None:
        yield
        return
    saved = module.eval_inner_steps
    try:
        module.eval_inner_steps = steps
        yield
    finally:
        module.eval_inner_steps = saved
