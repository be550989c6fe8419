"""A test that a report looks at, and its episodes once more."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from lightning_meta.core import Batch, Episode, TaskOutput
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EpisodicModule

Tasks = TypeVar("Tasks")


class Tested:
    """What was tested on which data, and the frozen test episodes, to be played as the test played them.

    Playing is for `Report.draw`, when the Trainer still has the module in evaluation mode without gradients. It is
    done on one process: nothing here communicates but `log`.

    Attributes:
        module: a `MetaModule`.
        data: a `TaskDataModule`.
    """

    def __init__(self, trainer: pl.Trainer, module: Any, data: Any) -> None:
        self.trainer, self.module, self.data = trainer, module, data

    @property
    def is_episodic(self) -> bool:
        return isinstance(self.module, EpisodicModule) and isinstance(self.data, EpisodicDataModule)

    @property
    def plays_episodes(self) -> bool:
        """All of one shape, so that many can be played at once."""
        return self.is_episodic and not self.data.varies("test")

    @property
    def classifies(self) -> bool:
        """Whether predictions can be read as logits."""
        return self.plays_episodes and isinstance(self.module.metric, EpisodicAccuracy)

    @property
    def adapts_in_steps(self) -> bool:
        """Whether `play` may be told their number."""
        return self.plays_episodes and hasattr(self.module, "eval_inner_steps")

    @property
    def generates(self) -> bool:
        """Whether the module makes new images of the classes of a task."""
        return self.plays_episodes and hasattr(self.module, "generate")

    @property
    def leaves_one_network(self) -> bool:
        """Whether adaptation ends with one, whose layers can be looked at, not with several predictors."""
        return not hasattr(self.module, "logits_of_each")

    def draws_from(self, source: type) -> bool:
        """Whether the test episodes come from such a source."""
        return self.plays_episodes and isinstance(self.data.sources["test"], source)

    @property
    def name(self) -> str:
        """`MAML on Glyphs`"""
        return f"{type(self.module).__name__} on {self.data.name}"

    @property
    def title(self) -> str:
        """The same with what its episodes are like, for a picture."""
        return f"{self.name}, {self.data.describe('test')}"

    def log(self, name: str, mean: Tensor | float, ci95: Tensor | None = None) -> None:
        """A number that the test measures, as `test/<name>`, with half of its 95 % interval."""
        self.module.log(f"test/{name}", mean)
        if ci95 is not None:
            self.module.log(f"test/{name}_ci95", ci95)

    def send_sound(self, path: Path) -> None:
        """To W&B where it is among the loggers: a WAV file, as `test/<stem>`."""
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb  # its list of sounds, which `log_audio` makes, needs another package

                logger.experiment.log({f"test/{path.stem}": wandb.Audio(str(path))})

    def first(self, count: int) -> range:
        """The ids of so many test tasks, or of as many as there are."""
        return range(min(count, self.data.test_episodes))

    def episodes(self, ids: Sequence[int]) -> Episode:
        """The test episodes `ids` as one meta-batch, in the trainer's precision and on its device."""
        return self.to_device(self.data.dataset("test").__getitems__(ids))

    def one(self, episode: int) -> Episode:
        """A meta-batch of one test episode, whatever its shape."""
        tasks = self.to_device(self.data.dataset("test").__getitems__([episode]))
        return tasks[0] if isinstance(tasks, list) else tasks

    def class_names(self, episode: int) -> dict[int, str] | None:
        """The names of the classes of a test episode by their labels; None where they have none."""
        return self.data.names_in("test", episode) if isinstance(self.data, ClassificationDataModule) else None

    def to_device(self, tasks: Tasks) -> Tasks:
        return to_device(self.trainer, tasks)

    def play(self, tasks: Episode, inner_steps: int | None = None) -> TaskOutput:
        """Adapt and predict; `inner_steps` replaces the module's `eval_inner_steps` for this call."""
        with self.trainer.precision_plugin.test_step_context(), eval_inner_steps(self.module, inner_steps):
            return self.module.play(tasks)

    def adapt(self, support: Batch, inner_steps: int | None = None) -> Any:
        """The first half of `play`: what the module makes of support sets."""
        with self.trainer.precision_plugin.test_step_context(), eval_inner_steps(self.module, inner_steps):
            return self.module.adapt_tasks(support)

    def answer(self, adapted: Any, query: Batch) -> TaskOutput:
        """The second half of `play`, of what `adapt` returned."""
        with self.trainer.precision_plugin.test_step_context():
            return self.module.query_tasks(adapted, query)


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
