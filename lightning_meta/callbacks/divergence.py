"""Stop a training that has become meaningless, and say where to look."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_meta import checkpoints
from lightning_meta.datamodules.episodes import EpisodeLoader
from lightning_meta.errors import ConfigError, DivergenceError
from lightning_meta.modules import MetaModule
from lightning_meta.ranks import gather
from lightning_meta.reports.tested import to_device


class Step(NamedTuple):
    """A training step.

    Attributes:
        number: outer updates before it, the x axis of the logs.
        batch: number of its meta-batch, or of one of those that it accumulates.
        ids: the episodes of that on this rank; empty when the loader does not tell.
        loss: scalar.
    """

    number: int
    batch: int
    ids: Sequence[int]
    loss: Tensor | float


class StopOnDivergence(pl.Callback):
    """Raise `DivergenceError` when a training loss or a weight is no longer finite.

    The message names the first bad step, its episodes, the command that replays it (see `ReplayStep`), and the last
    checkpoint, which is intact: nothing is saved after that step. On a CPU every loss is looked at. An accelerator
    would have to be waited for each time, so there the losses are kept and looked at every `log_every_n_steps` steps,
    and before anything is validated or saved.
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
        number, ids = _batch_and_ids(loader) if isinstance(loader, EpisodeLoader) else (batch_idx, ())
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # by which Lightning has divided it
        self._last = Step(self._number, number, ids, loss)
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
        checkpoint = _last_checkpoint(trainer)
        config = Path(trainer.log_dir or "", "config.yaml")  # every rank must ask for the folder
        lines = [what.format(loss=loss) + f" at global step {number}."]
        if ids and isinstance(trainer.train_dataloader, EpisodeLoader):
            seed = trainer.train_dataloader.dataset.seed
            lines += [f"It comes from meta-batch {batch}, episodes {ids}, data seed {seed}."]
        if config.is_file():
            command = ["python", "-m", "lightning_meta", "fit", "--config", str(config)]
            command += ["--ckpt_path", str(checkpoint)] if checkpoint else []
            lines += [f"To play them again, one by one: {shlex.join([*command, '--replay', str(number)])}"]
        elif ids:
            lines += [f'To look at them: datamodule.dataset("train").__getitems__({ids}).']
        lines += [
            "Usual remedies: a lower model.inner_lr, a lower outer learning rate, trainer.gradient_clip_val.",
            f"The last checkpoint is intact: {checkpoint}" if checkpoint else "No checkpoint has been written yet.",
        ]
        raise DivergenceError("\n".join(lines))


class ReplayStep(pl.Callback):
    """Train up to a step, play its meta-batch with a look at each episode, and end the process.

    Resume is exact: the weights, episodes and noise are those that the training had at that step. Printed are, for the
    episodes of all ranks, index, loss and score, and the parameters whose gradient is not finite; of each meta-batch
    where a step accumulates several.

    Args:
        step: outer updates before the step, as `StopOnDivergence` names it.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > self.step:
            raise ConfigError(
                f"--replay {self.step}, but the checkpoint is of step {trainer.global_step} already; take an earlier "
                "one with --ckpt_path, or none."
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        loader = trainer.train_dataloader
        if trainer.global_step != self.step:
            return
        assert isinstance(pl_module, MetaModule) and isinstance(loader, EpisodeLoader)
        first = pl_module.batch_number
        left = int(trainer.num_training_batches) - batch_idx  # in the epoch, whose last step may have fewer
        for number in range(first, first + min(trainer.accumulate_grad_batches, left)):
            ids = loader.ids_of_batch(number)
            tasks = batch if number == first else to_device(trainer, loader.dataset.__getitems__(ids))
            self._play(trainer, pl_module, number, ids, tasks)
        sys.exit(0)

    def _play(self, trainer: pl.Trainer, module: MetaModule, number: int, ids: Sequence[int], tasks: Any) -> None:
        module.seed_noise(number)
        module.zero_grad()
        with trainer.precision_plugin.train_step_context():
            values, _ = module.measure(tasks)
        losses, scores = values["loss"], values[module.metric.name]
        losses.mean().backward()
        played = gather(list(zip(ids, losses.tolist(), scores.tolist(), strict=True)))
        if trainer.is_global_zero:
            gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            print(f"global step {self.step}, meta-batch {number}:")
            for episode, loss, score in sorted(row for rows in played for row in rows):
                print(f"  episode {episode}: loss {loss:.6g}, {module.metric.name} {score:.6g}")
            print(f"  gradient not finite in {len(bad)} of {len(gradients)} parameters {bad[:3]}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise ConfigError(f"--replay {self.step}, but the training ends after {trainer.global_step} steps.")


def _batch_and_ids(loader: EpisodeLoader) -> tuple[int, Sequence[int]]:
    """The meta-batch that was handed out last, and its episodes on this rank."""
    number = loader.position - 1  # the position counts those handed out
    return number, loader.ids_of_batch(number)


def _last_checkpoint(trainer: pl.Trainer) -> Path | None:
    # Lightning notes the path of a checkpoint before it writes the file, so the files are asked.
    folders = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    found = checkpoints.last(one for folder in folders if folder for one in checkpoints.below(Path(folder)))
    if found:
        return found.path
    return Path(trainer.ckpt_path) if trainer.ckpt_path else None
