"""How far a run is and when it will be done, in one line; and what is trained, before it."""

import logging
import shutil
import sys
from datetime import timedelta
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelSummary, ProgressBar

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """One line with steps of the whole training, time passed and left, rate and last metrics.

    `fit 120 / 400 steps, 30 %, 0:00:13, 0:00:31 left, 9.2 steps/s, train/loss 0.512, val/acc 0.894`

    Steps are outer updates, and what is left counts validations too, at the rate so far. On a terminal the line is
    renewed in its place. Elsewhere, as in a file, there is a new one after every validation, and every minute.
    It goes to standard error.

    Args:
        refresh_seconds: how often the line is renewed on a terminal. A GPU is waited for each time.
        line_seconds: after how long there is a new line elsewhere, though nothing was validated.
    """

    def __init__(self, refresh_seconds: float = 0.5, line_seconds: float = 60.0) -> None:
        super().__init__()
        self.refresh_seconds, self.line_seconds = refresh_seconds, line_seconds
        self._enabled = True
        self._start = self._shown_at = 0.0
        self._first_step = 0
        self._open = False  # whether a line on a terminal waits for its end

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due():
            self._show(self._training(trainer))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._show_evaluation(trainer, "validation", trainer.num_val_batches, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._show(self._training(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if sys.stderr.isatty():
            self._show(self._training(trainer))
        self._end()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._begin()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._show_evaluation(trainer, "test", trainer.num_test_batches, batch_idx)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _begin(self, step: int = 0) -> None:
        self._end()
        self._start = self._shown_at = perf_counter()
        self._first_step = step

    def _show_evaluation(self, trainer: pl.Trainer, what: str, batches: Any, batch_idx: int) -> None:
        if trainer.sanity_checking or not self._is_due():
            return
        done, total = batch_idx + 1, sum(batches) if isinstance(batches, list) else batches
        if trainer.state.fn == "fit":
            self._show(f"{self._training(trainer)}; {what} {done} / {total}")
        else:
            self._show(f"{what} {self._times(done, total, done, 'batches')}")

    def _training(self, trainer: pl.Trainer) -> str:
        done = trainer.global_step
        metrics = trainer.progress_bar_metrics  # not get_metrics, which adds the number of the run
        shown = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float)]
        return ", ".join([f"fit {self._times(done, steps(trainer), done - self._first_step, 'steps')}", *shown])

    def _times(self, done: int, total: float, new: int, unit: str) -> str:
        """How many of how many, and how long since the start, in which there were `new` ones."""
        passed = perf_counter() - self._start
        if total == float("inf"):
            parts = [f"{done:,} {unit}", _clock(passed)]
        else:
            left = f"{_clock(passed / new * (total - done))} left" if new else "? left"
            parts = [f"{done:,} / {total:,} {unit}", f"{100 * done / max(total, 1):.0f} %", _clock(passed), left]
        return ", ".join([*parts, f"{new / passed:.3g} {unit}/s"])

    def _is_due(self) -> bool:
        every = self.refresh_seconds if sys.stderr.isatty() else self.line_seconds
        return self._enabled and perf_counter() - self._shown_at >= every

    def _show(self, text: str) -> None:
        if not self._enabled:
            return
        self._shown_at = perf_counter()
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]}\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(text, file=sys.stderr, flush=True)

    def _end(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
        self._open = False


class Parameters(ModelSummary):
    """Says which parts have how many parameters, and how many of them are trained."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *others: Any,
        **kwargs: Any,
    ) -> None:
        columns = dict(summary_data)
        rows = zip(*(columns[name] for name in ("Name", "Type", "Params")), strict=False)
        parts = [f"{name} ({kind}) {count.strip()}" for name, kind, count in rows if count.strip() != "0"]
        log.info(
            "%s parameters, %s trained: %s.", f"{total_parameters:,}", f"{trainable_parameters:,}", ", ".join(parts)
        )


def steps(trainer: pl.Trainer) -> int | float:
    """Outer updates of the whole training; infinite where it has no end."""
    limits: list[int | float] = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * -(-trainer.num_training_batches // trainer.accumulate_grad_batches))
    return min(limits, default=float("inf"))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
