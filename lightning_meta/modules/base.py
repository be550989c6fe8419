"""What every meta-algorithm shares with the others: metrics, logging, optimizers, checks of the Trainer."""

import os
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_meta.core import TaskMode
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.sampling import episode_keys
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMean, EpisodicMetric
from lightning_meta.ranks import gather

MetaOptimizer = Callable[[Iterable], Optimizer]
MetaScheduler = Callable[[Optimizer], LRScheduler]
EVAL = ("val", "test")
NOISE_STREAM = 1000  # of rank 0; the streams below are those of episodes


class MetaModule(pl.LightningModule):
    """Base of `EpisodicModule` and `TruncatedModule`, which differ in what a task is. They write `measure`.

    Args:
        optimizer: makes the meta-optimizer from the parameters. Default: Adam, learning rate 1e-3.
        lr_scheduler: makes its schedule, stepped after every outer update (on a plateau: after validation). None:
            constant.
        task_mode: how tasks are mapped over the meta-batch: `vmap`, `loop`, or `auto` by device and size.
        task_chunk_size: tasks vectorised at once; lower it when memory runs out. None: all.
        compile_training: compile the training step with `torch.compile`, which takes half a minute to minutes and a C++
            compiler; iMAML cannot be. On a CPU it pays for long trainings of networks without convolutions, where most
            of the time goes into calling small operations (see `benchmark/README.md`).
    """

    plays: ClassVar[type[TaskDataModule]] = TaskDataModule  # the data that it is for

    def __init__(
        self,
        optimizer: MetaOptimizer | None = None,
        lr_scheduler: MetaScheduler | None = None,
        task_mode: TaskMode = "auto",
        task_chunk_size: int | None = None,
        compile_training: bool = False,
    ) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler = optimizer or Adam, lr_scheduler
        self.task_mode, self.task_chunk_size = task_mode, task_chunk_size
        self.compile_training = compile_training
        self._save_plain_hyperparameters()

    def measure_by(self, metric: EpisodicMetric) -> None:
        """Say what is measured per task, beside the loss. A subclass does once, when it is made."""
        self.metric = metric
        self.eval_metrics = nn.ModuleDict(
            {split: nn.ModuleDict({"loss": EpisodicMean(), metric.name: metric.clone()}) for split in EVAL}
        )

    def measure(self, tasks: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Play a meta-batch of T tasks, in training or evaluation.

        Returns:
            What is logged of each task, `(T,)` by name: `loss`, the gradient of whose mean is the meta-update, the
            metric, and others. And what else callbacks may look at, `(T, ...)` by name.
        """
        raise NotImplementedError

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """As Lightning's, but in evaluation mode, ready for use; tensors and plain values only."""
        return super().load_from_checkpoint(*args, **({"weights_only": True} | kwargs)).eval()

    def _save_plain_hyperparameters(self) -> None:
        """From Python, collaborators (backbone, optimizer, ...) arrive as objects, which have no place in a file."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)  # loggers get the whole config from the command line
        for name in [name for name, value in self.hparams.items() if callable(value)]:
            del self.hparams[name]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Noise that the hooks draw is a function of (seed, step, rank): a resumed run repeats it."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        key = episode_keys(seed, NOISE_STREAM + self.global_rank, [self.global_step])
        torch.manual_seed(int(key[0]))

    def on_fit_start(self) -> None:
        """A module from `load_from_checkpoint` is in evaluation mode, in which the Trainer would train it."""
        if not self.training:
            self.train()

    def training_step(self, tasks: Any, batch_idx: int) -> Tensor:
        values, _ = self._measure_compiled(tasks) if self.compile_training else self.measure(tasks)
        n_global = len(values["loss"]) * self.trainer.world_size
        for shown in (True, False):
            logged = {f"train/{k}": v.detach().mean() for k, v in values.items() if (k in self._shown) == shown}
            self.log_dict(logged, batch_size=n_global, prog_bar=shown)
        return values["loss"].mean()

    def _measure_compiled(self, tasks: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        try:
            return self._compiled_measure(tasks)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"the training step of {type(self).__name__} cannot be compiled here; set compile_training to false. "
                f"({type(error).__name__}: {reason})"
            ) from error

    @cached_property
    def _compiled_measure(self) -> Callable[[Any], tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Made by the process that trains: what is compiled cannot be sent to another."""
        return torch.compile(self.measure, dynamic=False)

    @property
    def _shown(self) -> tuple[str, str]:
        """What the progress bar shows."""
        return "loss", self.metric.name

    def validation_step(self, tasks: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(tasks, "val")

    def test_step(self, tasks: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(tasks, "test")

    def _evaluate(self, tasks: Any, split: str) -> dict[str, Tensor]:
        """Update the split's metrics; return what `measure` did."""
        values, others = self.measure(tasks)
        metrics = self._metrics(split)
        for name, value in values.items():
            if name not in metrics:
                metrics[name] = EpisodicMean().to(self.device)
            metrics[name].update(value)
        return {**values, **others}

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
        if isinstance(datamodule, TaskDataModule):
            self.check_data(type(datamodule))

    @classmethod
    def check_data(cls, data: type) -> None:
        """Raise `ConfigError` when the tasks of such a datamodule are not those that the algorithm plays."""
        if not issubclass(data, cls.plays):
            raise ConfigError(
                f"{cls.__name__} plays the tasks of an {cls.plays.__name__}, but {data.__name__} is none; choose the "
                "experiment, or --model and --data, to match."
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
