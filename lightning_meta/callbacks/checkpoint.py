"""Best and last checkpoints: each written whole or not at all, and once more before a signal ends the run."""

import io
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from lightning_meta import checkpoints
from lightning_meta.errors import UserError
from lightning_meta.modules import MetaModule
from lightning_meta.ranks import gather
from lightning_meta.signals import CHILD, STOP_SIGNALS


class EpisodicCheckpoint(ModelCheckpoint):
    """Keep the checkpoint that is best on meta-validation, and the last one.

    Monitors `val/<metric>` of the module in the direction of that metric, so the same setting serves accuracy and
    squared error. Files: `<run>/checkpoints/best-step=....ckpt` and `last.ckpt`.

    `last.ckpt` is written at the end of every epoch, better or not; every `every_n_train_steps` steps within an epoch;
    and when Ctrl-C or another signal (SIGTERM, SIGUSR1, SIGHUP) asks the process to stop: after the step in progress
    and the validation that is due then. The process ends with exit status 128 + signal, like one that was killed.
    A second Ctrl-C ends it at once.

    A file holds the score of its weights, by which `lightning_meta.checkpoints` finds the best ones of a run again, in
    whatever folder under whatever names.

    Args:
        monitor: a logged name. None: the module's metric.
        filename: of the best one. Slashes, as in `{val/acc:.3f}`, become underscores.
        every_n_train_steps: how often to write `last.ckpt` within an epoch. The best one is chosen after validations
            only, so that a score belongs to the weights that had it. None: never.
        **kwargs: of `ModelCheckpoint`, except `save_last`.
    """

    def __init__(
        self,
        monitor: str | None = None,
        filename: str = "best-{step}",
        every_n_train_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor=monitor, filename=filename, save_last=True, **kwargs)
        self.last_every = every_n_train_steps
        self._score: float | None = None  # of the weights that are being saved
        self._signal = 0  # that was received; 0: none
        self._stopping = False  # the same on all ranks
        self._start = 0  # steps when training began or went on

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(pl_module, MetaModule) and self.monitor in (None, f"val/{pl_module.metric.name}"):
            self.monitor = f"val/{pl_module.metric.name}"
            self.mode = pl_module.metric.mode
            self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user has chosen
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        super().setup(trainer, pl_module, stage)

    def format_checkpoint_name(self, *args: Any, **kwargs: Any) -> str:
        path = super().format_checkpoint_name(*args, **kwargs)
        if "://" in path:
            return path
        folder = Path(self.dirpath or "")
        return str(folder / "_".join(Path(path).relative_to(folder).parts))

    def _update_best_and_save(self, current: Tensor, *args: Any, **kwargs: Any) -> None:
        self._score = float(current)
        try:
            super()._update_best_and_save(current, *args, **kwargs)
        finally:
            self._score = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"score": self._score, "mode": self.mode, "time": time.time()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Paths there are those of a folder that may have been moved; `on_train_start` looks what is in it.
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})
        last = self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)
        if Path(last).exists():  # of the run that goes on here: replace it rather than write a last-v1.ckpt beside it
            self.last_model_path = last

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.ckpt_path and "://" not in str(self.dirpath):
            self._take_stock(trainer)
        self._signal, self._stopping, self._start = 0, False, trainer.global_step
        # In place of Lightning's handlers, which save or talk to other ranks at once, in the middle of a step; it puts
        # the original ones back after training.
        if threading.current_thread() is threading.main_thread():  # no other thread can have handlers
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    signal.signal(number, self._note_signal)

    def _take_stock(self, trainer: pl.Trainer) -> None:
        """Count as best so far what is in the folder."""
        mine = [one for one in checkpoints.below(Path(str(self.dirpath))) if one.monitor == self.monitor]
        ranked = checkpoints.ranking(mine)[: self.save_top_k if self.save_top_k >= 0 else None]
        found: list[tuple[str, float | None]] = trainer.strategy.broadcast(
            [(str(one.path), one.score) for one in ranked]
        )
        scores = {path: torch.tensor(score, dtype=torch.float64) for path, score in found}
        worst = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        self.best_k_models = scores
        self.best_model_path, self.kth_best_model_path = (found[0][0], found[-1][0]) if found else ("", "")
        self.best_model_score = scores.get(self.best_model_path)
        self.kth_value = scores.get(self.kth_best_model_path, worst)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            if getattr(rank_zero_only, "rank", 0) == 0:  # `print` is not safe in a handler
                os.write(2, b"\nStopping after this step, to save. Ctrl-C once more stops at once.\n")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._ask_ranks(trainer)
        due = self.last_every and trainer.global_step % self.last_every == 0
        ends = trainer.global_step == trainer.max_steps
        if (due or ends or self._stopping) and _between_steps(trainer, batch_idx):
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > self._start:  # else this is the epoch whose end has been saved and resumed from
            super().on_train_epoch_end(trainer, pl_module)
            self._ask_ranks(trainer)
            self._save_last(trainer)  # Lightning does it only when the epoch was the best

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._last_global_step_saved == trainer.global_step:
            for logger in trainer.loggers:  # now that they have the saved step: a resumed run does not log it again
                logger.save()
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning forgets this here, with save_last
            super().on_train_end(trainer, pl_module)
            self._stop_if_asked(trainer)

    def _ask_ranks(self, trainer: pl.Trainer) -> None:
        self._stopping = trainer.strategy.reduce_boolean_decision(self._signal != 0, all=False)

    def _save_last(self, trainer: pl.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Save; when the first rank cannot write, end all of them."""
        failure = None
        try:
            super()._save_checkpoint(trainer, filepath)
        except UserError as error:
            failure = error
            trainer.strategy.barrier()  # where the other ranks wait for the file
        if trainer.strategy.reduce_boolean_decision(failure is None):
            return
        if failure:
            raise failure
        sys.exit(0)  # the first rank tells why

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._stopping:
            number = max(gather(self._signal))
            go_on = f"; to go on, add to the command: --ckpt_path {self.last_model_path}"
            rank_zero_info(
                f"Stopped by {signal.Signals(number).name} after step {trainer.global_step}"
                f"{'.' if CHILD in os.environ else go_on}"
            )
            # One rank is enough to tell a launcher, which would kill the others for it.
            sys.exit(128 + number if trainer.is_global_zero else 0)


def _between_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether training goes straight on after this batch: no gradients are waiting, and no validation is due.

    A checkpoint before a validation would make the resumed run skip it; the end of the epoch has one after it.
    """
    done, validation = batch_idx + 1, trainer.val_check_batch
    last_of_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    validation_due = validation is not None and done % validation == 0
    return not last_of_epoch and not validation_due and done % trainer.accumulate_grad_batches == 0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there, so that a kill or a full disk leaves the former one.

    Lightning writes to the system's temporary folder first; from there to another file system the file is copied, and
    half a copy may be left.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises `UserError` when the file cannot be written."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        part = Path(f"{path}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            free = shutil.disk_usage(next(folder for folder in part.parents if folder.is_dir())).free
            newest = checkpoints.last(checkpoints.below(part.parent))
            kept = f"The last good checkpoint is {newest.path}." if newest else "No checkpoint has been written before."
            raise UserError(
                f"cannot write checkpoint {path}: {error.strerror}. It needs {content.getbuffer().nbytes:,} bytes; "
                f"{free:,} are free there. {kept}"
            ) from error
