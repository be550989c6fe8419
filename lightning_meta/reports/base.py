"""The base of reports: each looks at a test from one side, and draws what it has seen when the test has ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger

from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.errors import require_at_least
from lightning_meta.modules import MetaModule
from lightning_meta.reports.tested import Tested


class Report(pl.Callback):
    """A drawing of a test. A subclass writes `applies` and `draw`; `TestReport` finds it in this folder.

    A report that needs more than some episodes, played again, looks on while the test runs: `begin`, `observe` and
    `conclude` are called on every process, and only where it applies.

    Pictures are written to `<log_dir>/pictures/<name>.png` and sent to W&B where it is among the loggers. Rank zero
    draws alone. A dry run (`fast_dev_run`) has no log directory and draws nothing.

    Args:
        **counts: those of its arguments that count something, which must be at least 1.

    Attributes:
        paths: of the pictures of the last test.
    """

    unasked: ClassVar[bool] = True  # False: costs too much for every test, so `TestReport` waits to be asked for it

    def __init__(self, **counts: int | None) -> None:
        require_at_least(1, **{f"{type(self).__name__}.{name}": count for name, count in counts.items()})
        self.paths: list[Path] = []
        self.tested: Tested | None = None  # while a test runs to which the report applies

    def applies(self, tested: Tested) -> bool:
        """Whether there is anything to draw of such a test. Asked on every process, when the test begins."""
        raise NotImplementedError

    def draw(self, tested: Tested, log_dir: Path) -> Mapping[str, Figure]:
        """The figures by their names; tables are written to `log_dir`."""
        raise NotImplementedError

    def begin(self, tested: Tested) -> None:
        """Before the first batch."""

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        """After each batch of the test: what the module returned for it, and which tasks it has."""

    def conclude(self, tested: Tested) -> None:
        """After the last batch: the time to log numbers, by `tested.log`."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.paths, self.tested = [], None
        data = getattr(trainer, "datamodule", None)
        if isinstance(pl_module, MetaModule) and isinstance(data, TaskDataModule):
            tested = Tested(trainer, pl_module, data)
            if self.applies(tested):
                self.tested = tested
                self.begin(tested)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.tested:
            loader: Any = trainer.test_dataloaders  # one EpisodeLoader
            self.observe(self.tested, outputs, batch, loader.ids_of_batch(batch_idx))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.tested:
            self.conclude(self.tested)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log_dir = trainer.log_dir  # communicates: every rank must ask
        tested, self.tested = self.tested, None
        if log_dir is not None and trainer.is_global_zero and tested:
            for name, figure in self.draw(tested, Path(log_dir)).items():
                self._save(figure, name, tested, Path(log_dir))

    def _save(self, figure: Figure, name: str, tested: Tested, log_dir: Path) -> None:
        path = log_dir / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        self.paths.append(path)
        for logger in tested.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key=f"test/{name}", images=[str(path)])
