"""How fast training is."""

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_meta.core import count_tasks
from lightning_meta.datamodules.base import TaskDataModule


class Throughput(pl.Callback):
    """Log `train/episodes_per_s`, global over devices, every `log_every_n_steps` steps.

    And of the work that data say is in them: `train/world_steps_per_s` of reinforcement learning.

    The clock runs while training, drawing of episodes included, and stands still during validation and what follows it
    (checkpoints), until the next training step begins.

    Attributes:
        episodes: played since the start of `fit`.
        seconds: that they took.
    """

    def __init__(self) -> None:
        self.episodes, self.seconds = 0, 0.0
        self._window = (0, 0.0)  # episodes and seconds when the rate was last logged
        self._since: float | None = None  # when the clock was started; None: it stands still

    @property
    def mean(self) -> float:
        """Episodes per second over the whole of training; NaN before it."""
        return self.episodes / self.seconds if self.seconds else float("nan")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.episodes, self.seconds, self._window, self._since = 0, 0.0, (0, 0.0), None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._since is None:
            self._since = perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.episodes += count_tasks(batch) * trainer.world_size
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Else the gradient waits for more batches.
        updated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if every and updated and trainer.global_step % every == 0:
            self._read_clock(pl_module.device)
            self._since = perf_counter()
            episodes, seconds = self._window
            rate = (self.episodes - episodes) / (self.seconds - seconds)
            pl_module.log("train/episodes_per_s", rate)
            data = getattr(trainer, "datamodule", None)
            for name, count in data.work("train").items() if isinstance(data, TaskDataModule) else ():
                pl_module.log(f"train/{name}_per_s", rate * count)
            self._window = self.episodes, self.seconds

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_clock(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_clock(pl_module.device)

    def _read_clock(self, device: torch.device) -> None:
        """Add the time since the clock was started, and stop it."""
        if self._since is None:
            return
        if device.type != "cpu":
            torch.accelerator.synchronize()  # what is queued belongs to the time that has passed
        self.seconds += perf_counter() - self._since
        self._since = None
