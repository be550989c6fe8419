"""What every meta-algorithm shares with the others: metrics, logging, optimizers, checks of the Trainer."""

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from inspect import currentframe
from types import FrameType
from typing import Any, ClassVar, Literal, Self, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler, LearningRateFinder
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.parsing import collect_init_args
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from lightning_meta.core import TaskMode, count_tasks
from lightning_meta.core.cuda_graph import CannotRecord, Means, RecordedStep, Schedule
from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.errors import ConfigError, reason, require_at_least
from lightning_meta.metrics import EpisodicMean, EpisodicMetric
from lightning_meta.modules.arguments import as_saved, refuse_notes
from lightning_meta.provenance import KEY as PROVENANCE
from lightning_meta.provenance import Provenance, hardware
from lightning_meta.ranks import gather
from lightning_meta.schedules import Schedule as RateSchedule

MetaOptimizer = Callable[[Iterable], Optimizer]
MetaScheduler = Callable[[Optimizer], LRScheduler]
EVAL = ("val", "test")
NOISE_BLOCK = 256  # meta-batches whose seeds are drawn at once
NOISE_STREAM = 1000  # of rank 0; the streams below are those of episodes
BUFFER = "buffer "  # begins the name of a new value of a buffer among the means of a training step


class MetaModule(pl.LightningModule):
    """Base of `EpisodicModule` and `TruncatedModule`, which differ in what a task is. They write `measure`.

    Args:
        optimizer: makes the meta-optimizer from the parameters. Default: Adam, learning rate 1e-3.
        lr_scheduler: makes its schedule, stepped after every outer update (on a plateau: after validation). None:
            constant.
        lr_multipliers: by what the optimizer's learning rate is multiplied for parameters whose names begin so:
            `{backbone: 0.1}`. None: one rate for all.
        task_mode: how tasks are mapped over the meta-batch: `vmap`, `loop`, or `auto` by device and size.
        task_chunk_size: tasks vectorised at once; lower it when memory runs out. None: all.
        compile_training: `true`: compile the training step with `torch.compile`, which takes half a minute to minutes
            and a C++ compiler; iMAML cannot be. On a CPU it pays for long trainings of networks without convolutions,
            where most of the time goes into calling small operations (see `docs/speed.md`). `cuda_graph`: on a
            GPU, record the step's kernels once and launch them together, which takes seconds. It pays for small
            networks, whose kernels take longer to launch than to run.
    """

    plays: ClassVar[type[TaskDataModule]] = TaskDataModule  # the data that it is for

    def __init__(
        self,
        optimizer: MetaOptimizer | None = None,
        lr_scheduler: MetaScheduler | None = None,
        lr_multipliers: dict[str, float] | None = None,
        task_mode: TaskMode = "auto",
        task_chunk_size: int | None = None,
        compile_training: bool | Literal["cuda_graph"] = False,
    ) -> None:
        super().__init__()
        require_at_least(1, task_chunk_size=task_chunk_size)
        self.optimizer, self.lr_scheduler = optimizer or Adam, lr_scheduler
        self.lr_multipliers = lr_multipliers or {}
        self.task_mode, self.task_chunk_size = task_mode, task_chunk_size
        self.compile_training = compile_training
        self._schedule: Schedule | None = None  # fixed while a step is recorded
        self.provenance: Provenance | None = None  # of the weights; None: they were not trained
        self._new_buffers: list[dict[str, Tensor]] = []  # of each meta-batch since the last outer update
        self._save_plain_arguments()

    def measure_by(self, metric: EpisodicMetric) -> None:
        """Say what is measured per task, beside the loss. A subclass does once, when it is made."""
        self.metric = metric
        self.eval_metrics = nn.ModuleDict(
            {split: nn.ModuleDict({"loss": EpisodicMean(), metric.name: metric.clone()}) for split in EVAL}
        )

    def measure(self, tasks: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Play a meta-batch of T tasks, in training or evaluation.

        Returns:
            What is logged of each task, `(T,)` by name: `loss`, the gradient of whose mean is the meta-update, the
            metric, and others. And what else callbacks may look at, `(T, ...)` by name; in training, `buffers` among
            it are new values of buffers, by their names.
        """
        raise NotImplementedError

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """As Lightning's, but in evaluation mode, ready for use; tensors and plain values only."""
        return super().load_from_checkpoint(*args, **({"weights_only": True} | kwargs)).eval()

    def _save_plain_arguments(self) -> None:
        """For `load_from_checkpoint`, which gives them to the constructor again (see `modules/arguments.py`)."""
        # Lightning adds what constructors hand on to one another, but only the outermost will be called.
        given = collect_init_args(cast(FrameType, currentframe()), [], classes=(MetaModule,))[-1]
        refuse_notes(type(self), given)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)  # loggers get the whole config from the command line
        if "_instantiator" not in self.hparams:  # else the command line made it, from plain values
            self.hparams.clear()
            self.hparams.update(as_saved(type(self), given))

    @property
    def batch_number(self) -> int:
        """Of the training meta-batch at hand, from the start of training; an outer update may accumulate several."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.seed_noise(self.batch_number)
        # The step that loggers get, of which Lightning counts one too many after a resume at the end of an epoch.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def seed_noise(self, batch_number: int) -> None:
        """Noise that the hooks draw is a function of (seed, meta-batch, rank): a resumed run repeats it."""
        seed = (self.provenance or Provenance.of_this_process()).seed or 0
        block, place = divmod(batch_number, NOISE_BLOCK)
        seed_generators(noise_seeds(seed, NOISE_STREAM + self.global_rank, block)[place], self.device)

    def on_fit_start(self) -> None:
        if not self.training:  # as after `load_from_checkpoint`; so the Trainer would train it
            self.train()
        data = getattr(self.trainer, "datamodule", None)
        trained_on = data.trained_on() if isinstance(data, TaskDataModule) else None
        now = Provenance.of_this_process(trained_on, hardware(self.device))
        self.provenance = self.provenance.continued(now) if self.trainer.ckpt_path and self.provenance else now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.provenance is not None:
            checkpoint[PROVENANCE] = self.provenance._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.provenance = Provenance.from_checkpoint(checkpoint)

    def schedule(self) -> Schedule:
        """What the training hooks need to know of the step, by name. They read it by `scheduled`.

        A float may change with every step; a step that is recorded reads it anew. When another value changes, the step
        is recorded anew.
        """
        return {}

    def scheduled(self, name: str) -> Any:
        """A value of `schedule` for the step at hand; in place of a float there may be a tensor."""
        return (self.schedule() if self._schedule is None else self._schedule)[name]

    @property
    def global_step(self) -> int:
        if self._schedule is not None:
            raise ConfigError(
                f"the hooks of {type(self).__name__} read global_step, but a step that is recorded would be that step "
                "for ever; let `schedule` return what they need of it, or set compile_training to false."
            )
        return super().global_step

    def means(self, tasks: Any) -> Means:
        """What a training step computes: means over tasks of what `measure` returns; `loss` is differentiated."""
        values, others = self.measure(tasks)
        new = {f"{BUFFER}{name}": value.detach().mean(0) for name, value in others.get("buffers", {}).items()}
        return {name: value.mean() for name, value in values.items()} | new

    def _means_at(self, tasks: Any, schedule: Schedule) -> Means:
        """`means` where the schedule is this one."""
        self._schedule = schedule
        try:
            return self.means(tasks)
        finally:
            self._schedule = None

    def training_step(self, tasks: Any, batch_idx: int) -> Tensor:
        try:
            means = self._training_means(tasks)
        except (torch._dynamo.exc.TorchDynamoException, CannotRecord) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"the training step of {type(self).__name__} cannot be compiled here; set compile_training to false. "
                f"({type(error).__name__}: {reason})"
            ) from error
        new = {name: value for name, value in means.items() if name.startswith(BUFFER)}
        # Cloned, because a recorded step overwrites what it returned before.
        self._new_buffers.append({name.removeprefix(BUFFER): value.clone() for name, value in new.items()})
        if self._logs_step:
            n_global = count_tasks(tasks) * self.trainer.world_size
            for shown in (True, False):
                logged = {
                    f"train/{k}": v.detach() for k, v in means.items() if k not in new and (k in self._shown) == shown
                }
                self.log_dict(logged, batch_size=n_global, prog_bar=shown)
        return means["loss"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The outer update and, before anything else, new values of buffers: the next checkpoint must have them."""
        super().optimizer_step(*args, **kwargs)
        batches, self._new_buffers = self._new_buffers, []
        for name in batches[0]:
            mean = torch.stack([new[name] for new in batches]).mean(0)
            self.get_buffer(name).copy_(self.trainer.strategy.reduce(mean, reduce_op="mean"))

    @property
    def _logs_step(self) -> bool:
        """Whether the loggers get this step, or whoever looks at its epoch the last of it.

        Others are not logged, which is half of what Lightning adds to a small step; and a GPU is waited for when the
        progress bar gets its numbers.
        """
        trainer = self.trainer
        fast: int = trainer.fast_dev_run  # type: ignore[attr-defined]
        return trainer._logger_connector.should_update_logs or trainer.is_last_batch or bool(fast)

    @cached_property
    def _training_means(self) -> Callable[[Any], Means]:
        """`means` as `compile_training` says, made by the process that trains: it cannot be sent to another."""
        if self.compile_training == "cuda_graph":
            recorded = RecordedStep(self, self._means_at)
            return lambda tasks: recorded(tasks, self.schedule())
        return torch.compile(self.means, dynamic=False) if self.compile_training else self.means

    def teardown(self, stage: str) -> None:
        """What was recorded reads the weights where they are now."""
        self.__dict__.pop("_training_means", None)

    @property
    def _shown(self) -> tuple[str, str]:
        """What the progress bar shows."""
        return "loss", self.metric.name

    def validation_step(self, tasks: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(tasks, "val", self._parts("val", self.trainer.val_dataloaders, batch_idx))

    def test_step(self, tasks: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(tasks, "test", self._parts("test", self.trainer.test_dataloaders, batch_idx))

    def _parts(self, split: Split, loader: Any, batch_idx: int) -> Sequence[str]:
        """To which part of the evaluation each task of a meta-batch belongs; empty where there are no parts."""
        data = getattr(self.trainer, "datamodule", None)
        return data.parts(split, loader.ids_of_batch(batch_idx)) if isinstance(data, TaskDataModule) else ()

    def _evaluate(self, tasks: Any, split: Split, parts: Sequence[str] = ()) -> dict[str, Any]:
        """Update the split's metrics, and those of its parts; return what `measure` did."""
        values, others = self.measure(tasks)
        metrics = self._metrics(split)
        of_parts = {
            f"{part}/{name}": value[[place for place, its in enumerate(parts) if its == part]]
            for part in dict.fromkeys(parts)
            for name, value in values.items()
        }
        for name, value in (values | of_parts).items():
            if name not in metrics:
                metrics[name] = EpisodicMean().to(self.device)
            metrics[name].update(value)
        return {**values, **others}

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._step_plateaus()

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        metrics = self._metrics(split)
        # A rank without episodes does not know what the hooks log; computing communicates, so every rank must do it.
        for name in dict.fromkeys(name for names in gather([*metrics]) for name in names):
            metric = metrics[name] if name in metrics else EpisodicMean().to(self.device)
            mean, ci95 = metric.compute()  # summed over ranks by torchmetrics
            metric.reset()
            if name == self.metric.name and not mean.isfinite():
                rank_zero_warn(
                    f"{split}/{name} is {mean.item()}, since it is so in some episodes; the test_episodes.csv of a "
                    "test has each. Usual remedies: a lower model.inner_lr, fewer model.eval_inner_steps."
                )
            if "/" in name and name in metrics:  # of a part, which other data need not have
                del metrics[name]
            self.log(f"{split}/{name}", mean, prog_bar=name == self.metric.name)
            self.log(f"{split}/{name}_ci95", ci95)

    def _metrics(self, split: str) -> dict[str, EpisodicMetric]:
        return cast(dict[str, EpisodicMetric], self.eval_metrics[split])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError(f"this {type(self).__name__} has no parameters to train; run `test` instead of `fit`.")
        optimizer = _made("optimizer", self.optimizer, self._parameter_groups())
        for group in optimizer.param_groups:
            if "multiplier" in group:  # else it may have no rate at all
                group["lr"] = group["lr"] * group.pop("multiplier")  # anew: groups may share a tensor
        if self.lr_scheduler is None:
            return optimizer
        scheduler = _made("lr_scheduler", self.lr_scheduler, optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            self._check_plateau(scheduler)
            # Not by Lightning, which steps it after the checkpoint at the end of an epoch.
            never = sys.maxsize
            watched = self._watched(scheduler)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": watched, "frequency": never},
            }
        if isinstance(scheduler, RateSchedule):
            scheduler.stretch(self._training_steps)
        elif isinstance(scheduler, CosineAnnealingLR) and scheduler.T_max < self._training_steps:
            rank_zero_warn(
                f"CosineAnnealingLR(T_max={scheduler.T_max}) is at its lowest before the {self._training_steps} steps "
                "of the training are done, and rises again; lightning_meta.schedules.CosineAnnealing follows them."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameter_groups(self) -> Any:
        """All parameters; or groups of them, with their multipliers."""
        if not self.lr_multipliers:
            return self.parameters()
        multipliers = {"": 1.0, **self.lr_multipliers}  # "" is of all others
        if wrong := {start: by for start, by in multipliers.items() if not by > 0}:
            raise ConfigError(
                f"lr_multipliers must be above 0, not {wrong}; to leave weights as they are, freeze them."
            )
        groups: dict[str, list[nn.Parameter]] = {start: [] for start in multipliers}
        for name, parameter in self.named_parameters():
            begun = [start for start in self.lr_multipliers if f"{name}.".startswith(f"{start}.")]
            groups[max(begun, key=len, default="")].append(parameter)
        if missing := [start for start in self.lr_multipliers if not groups[start]]:
            names = sorted({name.partition(".")[0] for name, _ in self.named_parameters()})
            raise ConfigError(
                f"lr_multipliers names {', '.join(missing)}, but no parameter's name begins so; take one of "
                f"{', '.join(names)}, or more of a name."
            )
        return [{"params": groups[start], "multiplier": by} for start, by in multipliers.items()]

    @property
    def _training_steps(self) -> int:
        """Outer updates of the whole training."""
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        limits = [trainer.max_steps] if trainer.max_steps > 0 else []
        if (trainer.max_epochs or -1) > 0 and isinstance(data, TaskDataModule):
            limits.append(trainer.max_epochs * data.updates_per_epoch)  # type: ignore[operator]
        if not limits:
            raise ConfigError(
                "the learning rate follows the length of the training, which has none; set trainer.max_steps."
            )
        return min(limits)

    def _watched(self, scheduler: ReduceLROnPlateau) -> str:
        """What the scheduler looks at; Lightning's own class names it."""
        return getattr(scheduler, "monitor", None) or f"val/{self.metric.name}"

    def _check_plateau(self, scheduler: ReduceLROnPlateau) -> None:
        """Let it look for the better in the direction of the metric, whatever its `mode`."""
        watched = self._watched(scheduler)
        better = {f"val/{self.metric.name}": self.metric.mode, "val/loss": "min"}.get(watched, scheduler.mode)
        worst = math.inf if better == "min" else -math.inf
        scheduler.load_state_dict(scheduler.state_dict() | {"mode": better, "best": worst})
        if self.trainer.limit_val_batches == 0:
            raise ConfigError(f"ReduceLROnPlateau looks at {watched}, but limit_val_batches=0: nothing is validated.")

    def _step_plateaus(self) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                watched, found = self._watched(config.scheduler), self.trainer.callback_metrics
                if watched not in found:
                    raise ConfigError(
                        f"ReduceLROnPlateau looks at {watched}, which is not logged; there are: {', '.join(found)}."
                    )
                config.scheduler.step(found[watched].item())

    def prepare_data(self) -> None:
        """Set the data up before loggers open their runs: data that cannot be played leave none behind.

        Not of several processes, of which one alone is here, and the others would lose it without a word.
        """
        data, stage = getattr(self.trainer, "datamodule", None), self.trainer.state.fn
        if isinstance(data, TaskDataModule) and stage is not None and self.trainer.world_size == 1:
            data.setup(stage)

    def setup(self, stage: str) -> None:
        _check_trainer(self.trainer)
        if self.compile_training == "cuda_graph" and stage == "fit":
            _check_cuda(self.trainer.strategy.root_device)
        if self.compile_training == "cuda_graph":
            check_recordable(self)
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, TaskDataModule):
            self.check_data(type(datamodule))
            if self.compile_training and stage == "fit" and datamodule.varies("train"):
                raise ConfigError(
                    f"compile_training={self.compile_training} makes a step for one shape of episodes, but those of "
                    f"{datamodule.name} vary; set it to false, or leave data.variable out."
                )

    @classmethod
    def check_data(cls, data: type) -> None:
        """Raise `ConfigError` when the tasks of such a datamodule are not those that the algorithm plays."""
        if not issubclass(data, cls.plays):
            article = "an" if cls.plays.__name__[0] in "AEIOU" else "a"
            raise ConfigError(
                f"{cls.__name__} plays the tasks of {article} {cls.plays.__name__}, but {data.__name__} is none; "
                "choose the experiment, or --model and --data, to match."
            )


@lru_cache(maxsize=1)
def noise_seeds(seed: int, stream: int, block: int) -> list[int]:
    """The seeds of so many meta-batches at once, which costs as much as one."""
    return episode_keys(seed, stream, range(block * NOISE_BLOCK, (block + 1) * NOISE_BLOCK)).tolist()


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU and one device. `torch.manual_seed`, which seeds all that there could be, takes a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _check_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise ConfigError(
            f"compile_training=cuda_graph records what is launched on a CUDA GPU, but this training is on the "
            f"{device.type}; set it to false, or trainer.accelerator to gpu."
        )


def check_recordable(module: nn.Module) -> None:
    """Raise `ConfigError` where a recorded step would not be the step that is recorded.

    That of cuDNN's recurrent networks is not: weights after five steps differed by 3 % (torch 2.11, H200).
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase):
            raise ConfigError(
                f"compile_training=cuda_graph: {name} is an nn.{type(layer).__name__}, and recorded steps of recurrent "
                "networks are not exact; set it to false."
            )


def _made(setting: str, make: Callable[[Any], Any], of: Any) -> Any:
    """What a setting of the model makes, or `ConfigError` where torch refuses its numbers."""
    try:
        return make(of)
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"model.{setting} is refused by torch: {reason(error)} Change it: --model.{setting}.KEY VALUE."
        ) from error


def _check_trainer(trainer: pl.Trainer) -> None:
    require_at_least(
        1,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
    )
    if trainer.val_check_interval == 0:
        raise ConfigError("val_check_interval=0 is no interval; to validate nothing, set limit_val_batches=0.")
    if any(isinstance(callback, LearningRateFinder) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ConfigError(
            "LearningRateFinder changes model.lr, but the learning rate is the optimizer's here; leave it out and set "
            "model.optimizer.init_args.lr."
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ConfigError(
            "GradientAccumulationScheduler makes epochs of different numbers of outer updates; set "
            "trainer.accumulate_grad_batches."
        )
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        raise ConfigError(
            "reload_dataloaders_every_n_epochs would begin with the first episodes again; every episode is new anyway, "
            "so leave it 0."
        )
    clip = trainer.gradient_clip_val
    if clip is not None and clip < 0:
        raise ConfigError(f"gradient_clip_val={clip} would not clip at all; take a positive number, or none.")
    if "16" in trainer.precision and "bf16" not in trainer.precision:
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
