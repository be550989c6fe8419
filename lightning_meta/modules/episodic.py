"""The Lightning seam: an algorithm writes two hooks for ONE task, everything else is owned here."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, Generic, Literal, Self, TypeVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_meta.core import (
    Batch,
    Episode,
    TaskMode,
    TaskOutput,
    choose_mode,
    loop_with_gradients,
    map_tasks,
    with_gradient,
)
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import EpisodeShape, Split
from lightning_meta.datamodules.sampling import episode_keys
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicAccuracy, EpisodicMean, EpisodicMetric
from lightning_meta.ranks import gather

Adapted = TypeVar("Adapted")
MetaOptimizer = Callable[[Iterable], Optimizer]
MetaScheduler = Callable[[Optimizer], LRScheduler]
EVAL = ("val", "test")
NOISE_STREAM = 1000  # of rank 0; the streams below are those of episodes


class EpisodicModule(pl.LightningModule, Generic[Adapted]):
    """Base of every meta-algorithm that plays support-query episodes.

    A subclass writes `adapt` and `query_loss` for one task: pure functions that read `self`, return, and assign
    nothing. They are mapped over the meta-batch here, each in its own mode.

    Args:
        optimizer: makes the meta-optimizer from the parameters. Default: Adam, learning rate 1e-3.
        lr_scheduler: makes its schedule, stepped after every outer update (on a plateau: after validation). None:
            constant.
        metric: what is measured per episode. Default: accuracy.
        task_mode: how a task's hooks are mapped over the meta-batch: `vmap`, `loop`, or `auto` by device and size.
        task_chunk_size: tasks vectorised at once; lower it when memory runs out. None: all.
        adapt_in_fp32: under bf16-mixed, adapt in fp32 and leave bfloat16 to the query sets. What is rounded within an
            inner loop turns the meta-gradient (see `benchmark/precision.py`).
    """

    def __init__(
        self,
        optimizer: MetaOptimizer | None = None,
        lr_scheduler: MetaScheduler | None = None,
        metric: EpisodicMetric | None = None,
        task_mode: TaskMode = "auto",
        task_chunk_size: int | None = None,
        adapt_in_fp32: bool = True,
    ) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler = optimizer or Adam, lr_scheduler
        self.task_mode, self.task_chunk_size, self.adapt_in_fp32 = task_mode, task_chunk_size, adapt_in_fp32
        self.metric = metric or EpisodicAccuracy()
        self.eval_metrics = nn.ModuleDict(
            {split: nn.ModuleDict({"loss": EpisodicMean(), self.metric.name: self.metric.clone()}) for split in EVAL}
        )
        self._save_plain_hyperparameters()

    # ---- an algorithm writes these two --------------------------------------------------------------------------

    def adapt(self, support: Batch) -> Adapted:
        """Learn one task from its support set. Returns any pytree of tensors (fast weights, prototypes, ...)."""
        raise NotImplementedError

    def query_loss(self, adapted: Adapted, query: Batch) -> TaskOutput:
        """Evaluate what `adapt` returned on the task's query set. The gradient of `loss` is the meta-update."""
        raise NotImplementedError

    def check_task(self, shape: EpisodeShape, split: Split) -> None:
        """Raise `ConfigError` when this algorithm cannot play a split's episodes. Called at setup; optional."""

    def check_shots(self, shots: Sequence[int]) -> None:
        """Raise `ConfigError` when this algorithm cannot learn from classes with so many examples each; optional."""

    # ---- for use after training ---------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """As Lightning's, but in evaluation mode, ready for `adapt` and `predict`; tensors and plain values only."""
        return super().load_from_checkpoint(*args, **({"weights_only": True} | kwargs)).eval()

    @torch.no_grad()
    def predict(self, adapted: Adapted, x: Tensor, outputs: int = 1) -> Tensor:
        """Put to use what `adapt` learned from one support set, in evaluation mode.

        Args:
            adapted: what `adapt` returned.
            x: query inputs `(Q, ...)`. Under transductive normalisation they are normalised together, so a prediction
                depends on the others.
            outputs: regression only: how many numbers a target has.

        Returns:
            Of a classifier (its metric is accuracy) probabilities `(Q, C)`, column c for label c; there may be more
            columns than classes, 0 throughout. Otherwise what the algorithm predicts, `(Q, outputs)`, or
            `(Q, outputs, 2)` for means and standard deviations.

        Raises:
            ConfigError: the module is in training mode.
        """
        if self.training:
            raise ConfigError(
                f"this {type(self).__name__} is in training mode, where adaptation may differ; call module.eval() "
                "before adapt and predict."
            )
        classifies = isinstance(self.metric, EpisodicAccuracy)
        # `query_loss` wants targets, on which its predictions do not depend.
        y = x.new_zeros(len(x), dtype=torch.long) if classifies else x.new_zeros(len(x), outputs)
        preds = self.query_loss(adapted, Batch(x, y)).preds
        return preds.softmax(-1) if classifies else preds

    # ---- owned here ---------------------------------------------------------------------------------------------

    def _save_plain_hyperparameters(self) -> None:
        """From Python, collaborators (backbone, optimizer, ...) arrive as objects, which have no place in a file."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)  # loggers get the whole config from the command line
        for name in [name for name, value in self.hparams.items() if callable(value)]:
            del self.hparams[name]

    def play(self, tasks: Episode) -> TaskOutput:
        """Adapt to and evaluate every task of a meta-batch; each field of the result has a leading task axis."""
        if self._mode(tasks.support.x) == self._mode(tasks.query.x) == "loop":
            return self._loop(self._play_task, *tasks)
        return self.query_tasks(self.adapt_tasks(tasks.support), tasks.query)

    def _play_task(self, support: Batch, query: Batch) -> TaskOutput:
        with self.adapt_precision():
            adapted = self.adapt(support)
        if torch.is_grad_enabled():
            return with_gradient(self.query_loss, self.parameters(), adapted, query)
        return self.query_loss(adapted, query)

    def adapt_tasks(self, support: Batch) -> Any:
        """`adapt` for every task of a meta-batch."""
        with self.adapt_precision():
            return map_tasks(self.adapt, support, mode=self._mode(support.x), chunk_size=self.task_chunk_size)

    def adapt_precision(self) -> AbstractContextManager:
        """In which `adapt` runs: fp32 under mixed precision, unless `adapt_in_fp32` is off."""
        return torch.autocast(self.device.type, enabled=False) if self.adapt_in_fp32 else nullcontext()

    def query_tasks(self, adapted: Any, query: Batch) -> TaskOutput:
        """`query_loss` for every task of a meta-batch."""
        if self._mode(query.x) == "loop":
            return self._loop(self.query_loss, adapted, query)
        return map_tasks(self.query_loss, adapted, query, chunk_size=self.task_chunk_size)

    def _mode(self, x: Tensor) -> Literal["vmap", "loop"]:
        return choose_mode(self.task_mode, x)

    def _loop(self, play: Callable[..., TaskOutput], *tasks: Any) -> TaskOutput:
        if torch.is_grad_enabled():
            return loop_with_gradients(play, self.parameters(), *tasks)
        return map_tasks(play, *tasks, mode="loop")

    def on_train_batch_start(self, batch: Episode, batch_idx: int) -> None:
        """Noise that the hooks draw is a function of (seed, step, rank): a resumed run repeats it."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        key = episode_keys(seed, NOISE_STREAM + self.global_rank, [self.global_step])
        torch.manual_seed(int(key[0]))

    def on_fit_start(self) -> None:
        """A module from `load_from_checkpoint` is in evaluation mode, in which the Trainer would train it."""
        if not self.training:
            self.train()

    def training_step(self, tasks: Episode, batch_idx: int) -> Tensor:
        out = self.play(tasks)
        loss, score = out.loss.mean(), self.metric.per_episode(out.preds, tasks.query.y).mean()
        self._log({"train/loss": loss.detach(), f"train/{self.metric.name}": score}, tasks, prog_bar=True)
        self._log({f"train/{name}": value.detach().mean() for name, value in out.logs.items()}, tasks)
        return loss

    def validation_step(self, tasks: Episode, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(tasks, "val")

    def test_step(self, tasks: Episode, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(tasks, "test")

    def predict_step(self, tasks: Episode, batch_idx: int) -> Tensor:
        """Predictions `(T, Q, ...)` for the query sets."""
        return self.play(tasks).preds

    def _evaluate(self, tasks: Episode, split: str) -> dict[str, Tensor]:
        """Update the split's metrics; return the values of each episode, `(T,)`, by name, and the predictions."""
        out = self.play(tasks)
        score = self.metric.per_episode(out.preds, tasks.query.y)
        values = {"loss": out.loss, self.metric.name: score, **out.logs}
        metrics = self._metrics(split)
        for name, value in values.items():
            if name not in metrics:
                metrics[name] = EpisodicMean().to(self.device)
            metrics[name].update(value)
        return {**values, "preds": out.preds}

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        metrics = self._metrics(split)
        # A rank without episodes does not know what the hooks log; computing communicates, so every rank must do it.
        for name in dict.fromkeys(name for names in gather([*metrics]) for name in names):
            metric = metrics[name] if name in metrics else EpisodicMean().to(self.device)
            mean, ci95 = metric.compute()  # summed over ranks by torchmetrics
            metric.reset()
            self.log(f"{split}/{name}", mean.float(), prog_bar=name == self.metric.name)
            self.log(f"{split}/{name}_ci95", ci95.float())

    def _metrics(self, split: str) -> dict[str, EpisodicMetric]:
        return cast(dict[str, EpisodicMetric], self.eval_metrics[split])

    def _log(self, values: dict[str, Tensor], tasks: Episode, **options: Any) -> None:
        n_global = len(tasks.query.y) * self.trainer.world_size
        self.log_dict(values, batch_size=n_global, **options)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError(f"this {type(self).__name__} has no parameters to train; run `test` instead of `fit`.")
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):  # needs a validation result, so it steps with the epochs
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": f"val/{self.metric.name}"},
            }
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        _check_trainer(self.trainer)
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, EpisodicDataModule):
            for split in datamodule.sources:
                self._check_input(datamodule, split)
                self.check_task(datamodule.shapes[split], split)

    def _check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        backbone = getattr(self, "backbone", None)
        self.check_input_shape(datamodule.dataset(split)[0].support.x.shape[1:], type(datamodule).__name__)
        rows, ids = (getattr(owner, "vocabulary", None) for owner in (backbone, datamodule))
        if rows is not None and ids is not None and rows < ids:
            raise ConfigError(
                f"the backbone has vectors for vocabulary={rows} token ids, but {type(datamodule).__name__} has "
                f"{ids}; set both to the same number."
            )

    def check_input_shape(self, shape: Sequence[int], source: str) -> None:
        """Raise `ConfigError` unless the backbone takes single inputs of this shape, which `source` has."""
        expected, found = getattr(getattr(self, "backbone", None), "in_shape", None), tuple(shape)
        if expected is not None and expected not in (found, (prod(found),)):
            raise ConfigError(
                f"the backbone expects inputs of shape {expected}, but {source} has {found}; set the backbone's "
                "in_channels and image_size (or in_features) to match. Texts need a backbone for texts."
            )


def _check_trainer(trainer: pl.Trainer) -> None:
    if trainer.precision in ("16-mixed", "16-true"):
        raise ConfigError(
            f"precision={trainer.precision}: gradients within a task are not scaled, so float16 can turn them into "
            "zeros; use bf16-mixed or 32-true."
        )
    if trainer.validate_loop.inference_mode:
        raise ConfigError(
            "Trainer(inference_mode=True) can turn adaptation at evaluation into a silent no-op; "
            "pass inference_mode=False."
        )
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ConfigError(
            f"{type(trainer.strategy).__name__} shards parameters, which a functional inner loop cannot see whole; "
            "use strategy: ddp."
        )
