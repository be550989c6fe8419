"""What is drawn at the end of a test: one file per drawing, which says to which runs it applies and what it shows.

Every report in this folder is found by itself and can be imported from here.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from lightning_meta.cli.names import suggestion
from lightning_meta.errors import ConfigError
from lightning_meta.reports.base import Report

REPORTS: dict[str, type[Report]] = {}

for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    module = f"{__name__}.{file.stem}"
    for name, value in vars(import_module(module)).items():
        if isinstance(value, type) and issubclass(value, Report) and value.__module__ == module and value is not Report:
            REPORTS[name] = value

globals().update(REPORTS)
__all__ = ["Report", "TestReport", *REPORTS]


class TestReport(pl.Callback):
    """Every report that applies to the run, at the end of its test.

    A report that stands among the callbacks itself, with arguments of its own, is not made here once more:
    `--trainer.callbacks+ lightning_meta.reports.AdaptationCurve --trainer.callbacks.episodes 500`. Of several
    `TestReport`s the last one draws, so that a command may choose anew what a config has chosen.

    Args:
        only: names of the reports to make. None: all but those that wait to be asked for, such as `SupportUse`.
        skip: names of reports to leave out.
    """

    def __init__(self, only: Sequence[str] | None = None, skip: Sequence[str] = ()) -> None:
        for name in (*(only or ()), *skip):
            if name not in REPORTS:
                near = suggestion(name, [*REPORTS])
                raise ConfigError(f"TestReport: there is no report {name}; there are {', '.join(REPORTS)}.{near}")
        chosen = [name for name, cls in REPORTS.items() if cls.unasked] if only is None else only
        self.reports = [REPORTS[name]() for name in chosen if name not in skip]

    @property
    def paths(self) -> list[Path]:
        """Of the pictures of the last test."""
        return [path for report in self.reports for path in report.paths]

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        last = [callback for callback in callbacks if isinstance(callback, TestReport)][-1]
        alone = {type(callback) for callback in callbacks}
        self.reports = [report for report in self.reports if type(report) not in alone and self is last]
        self._each("on_test_start", trainer, pl_module)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._each("on_test_batch_end", *args, **kwargs)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._each("on_test_epoch_end", trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._each("on_test_end", trainer, pl_module)

    def _each(self, hook: str, *args: Any, **kwargs: Any) -> None:
        for report in self.reports:
            getattr(report, hook)(*args, **kwargs)


if TYPE_CHECKING:  # a type checker does not run the loop

    def __getattr__(name: str) -> Any: ...
