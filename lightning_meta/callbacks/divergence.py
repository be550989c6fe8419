"""Stop a training that has become meaningless, and say where to look."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_meta.datamodules.episodes import EpisodeLoader
from lightning_meta.errors import DivergenceError
from lightning_meta.ranks import gather


class Step(NamedTuple):
    """A training step.

    Attributes:
        number: outer updates before it, the x axis of the logs.
        batch: number of its meta-batch.
        ids: its episodes on this rank; empty when the loader does not tell.
        loss: scalar.
    """

    number: int
    batch: int
    ids: Sequence[int]
    loss: Tensor | float


class StopOnDivergence(pl.Callback):
    """Raise `DivergenceError` when a training loss or a weight is no longer finite.

    The message names the first bad step, its episodes, and the last checkpoint, which is intact: nothing is saved after
    that step. On a CPU every loss is looked at. An accelerator would have to be waited for each time, so there the
    losses are kept and looked at every `log_every_n_steps` steps, and before anything is validated or saved.
    """

    def __init__(self) -> None:
        self._unchecked: list[Step] = []
        self._last: Step | None = None
        self._number = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._unchecked, self._last = [], None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._number = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loader = trainer.train_dataloader
        number: int = batch_idx
        ids: Sequence[int] = ()
        if isinstance(loader, EpisodeLoader):
            number = loader.position - 1  # the position counts the meta-batches handed out
            ids = loader.ids_of_batch(number)
        self._last = Step(self._number, number, ids, outputs["loss"].detach())
        self._unchecked.append(self._last)
        if pl_module.device.type == "cpu" or len(self._unchecked) >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._check_losses(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_losses(trainer)
        self._check_weights(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_losses(trainer)
        self._check_weights(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check_losses(trainer)
        self._check_weights(trainer, pl_module)

    def _check_losses(self, trainer: pl.Trainer) -> None:
        """Raise on all ranks when one has seen a bad loss, so that none waits for another or saves."""
        losses = [torch.as_tensor(step.loss) for step in self._unchecked]
        finite = torch.stack(losses).isfinite().tolist() if losses else []
        bad = next((step for step, ok in zip(self._unchecked, finite, strict=True) if not ok), None)
        if trainer.strategy.reduce_boolean_decision(bad is None):
            self._unchecked = []
            return
        found = gather(bad and bad._replace(loss=float(bad.loss)))
        first = min(step.number for step in found if step)
        self._raise(trainer, [step for step in found if step and step.number == first], "the training loss is {loss}")

    def _check_weights(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A finite loss can have an infinite gradient, which only the loss of the next step would show."""
        if self._last and not all(bool(weights.isfinite().all()) for weights in module.parameters()):
            steps = gather(self._last._replace(loss=float(self._last.loss)))
            self._raise(trainer, steps, "the training loss is {loss}, but the weights after the update are not finite")

    def _raise(self, trainer: pl.Trainer, steps: list[Step], what: str) -> None:
        number, batch, _, loss = steps[0]
        ids = sorted(i for step in steps for i in step.ids)
        lines = [what.format(loss=loss) + f" at global step {number}."]
        if ids and isinstance(trainer.train_dataloader, EpisodeLoader):
            seed = trainer.train_dataloader.dataset.seed
            lines += [
                f"It comes from meta-batch {batch}, episodes {ids}, data seed {seed}. To look at them: "
                f'datamodule.dataset("train").__getitems__({ids}).'
            ]
        lines += [
            "Usual remedies: a lower model.inner_lr, a lower outer learning rate, trainer.gradient_clip_val.",
            _last_checkpoint(trainer),
        ]
        raise DivergenceError("\n".join(lines))


def _last_checkpoint(trainer: pl.Trainer) -> str:
    # Lightning notes the path of a checkpoint before it writes the file, so the files are asked.
    folders = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    written = [path for folder in folders if folder for path in Path(folder).glob("*.ckpt")]
    if trainer.ckpt_path and not written:
        written = [Path(trainer.ckpt_path)]
    if not written:
        return "No checkpoint has been written yet."
    return f"The last checkpoint is intact: {max(written, key=lambda path: path.stat().st_mtime_ns)}"
