"""The Lightning seam of episodes: an algorithm writes two hooks for ONE task, everything else is owned here."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone, FittedBackbone
from lightning_meta.compat import tree_map
from lightning_meta.core import (
    Batch,
    Episode,
    TaskOutput,
    Tasks,
    choose_mode,
    loop_with_gradients,
    map_tasks,
    with_gradient,
)
from lightning_meta.core.episode import EpisodeShape, Need, Split
from lightning_meta.core.repairs import repaired
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError, UserError
from lightning_meta.metrics import EpisodicAccuracy, EpisodicLogLikelihood, EpisodicMetric, EpisodicMSE
from lightning_meta.modules.base import MetaModule
from lightning_meta.modules.limits import explained, layer_of, quoted
from lightning_meta.pretrained import start_from

Adapted = TypeVar("Adapted")
logger = logging.getLogger(__name__)


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One meta-batch of several: what is known of their tasks, by name, one after the other."""
    return tree_map(lambda *leaves: torch.cat(leaves), *parts)


class EpisodicModule(MetaModule, Generic[Adapted]):
    """Base of every meta-algorithm that plays support-query episodes.

    A subclass writes `adapt` and `query_loss` for one task: pure functions that read `self`, return, and assign
    nothing. They are mapped over the meta-batch here, each in its own mode.

    Args:
        metric: what is measured per episode. Default: accuracy.
        adapt_in_fp32: under bf16-mixed, adapt in fp32 and leave bfloat16 to the query sets. What is rounded within an
            inner loop turns the meta-gradient (see `benchmark/precision.py`).
        pretrained: what the backbone starts from: a file of weights (`.pt`, `.pth`, `.ckpt`, `.safetensors`), or a run
            by folder or name, whose best checkpoint it is. A training that goes on, and a test of a checkpoint, have
            the checkpoint's.
        **kwargs: optimizer, lr_scheduler, task_mode and task_chunk_size of `MetaModule`.
    """

    plays = EpisodicDataModule
    needs: frozenset[Need] = frozenset()  # of its episodes, beyond the ordinary; the datamodule reads it
    transductive: ClassVar[bool] = False  # whether the head itself reads the query set, whatever the normalisation

    def __init__(
        self,
        metric: EpisodicMetric | None = None,
        adapt_in_fp32: bool = True,
        pretrained: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.measure_by(metric or EpisodicAccuracy())
        self.adapt_in_fp32, self.pretrained = adapt_in_fp32, pretrained

    # ---- an algorithm writes these two --------------------------------------------------------------------------

    def adapt(self, support: Batch) -> Adapted:
        """Learn one task from its support set. Returns any pytree of tensors (fast weights, prototypes, ...)."""
        raise NotImplementedError

    def query_loss(self, adapted: Adapted, query: Batch) -> TaskOutput:
        """Evaluate what `adapt` returned on the task's query set. The gradient of `loss` is the meta-update.

        What a task leaves to those after it is returned as `buffers`.
        """
        raise NotImplementedError

    def check_task(self, shape: EpisodeShape, split: Split) -> None:
        """Raise `ConfigError` when this algorithm cannot play a split's episodes. Called at setup; optional."""

    def check_shots(self, shots: Sequence[int]) -> None:
        """Raise `ConfigError` when this algorithm cannot learn from classes with so many examples each; optional."""

    def check_variable(self, split: Split) -> None:
        """Raise `ConfigError` when this algorithm needs a split's episodes to be of one shape; optional."""

    # ---- for use after training ---------------------------------------------------------------------------------

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
        preds = self.query_loss(adapted, Batch(x, self.unknown_targets(x, outputs))).preds
        return preds.softmax(-1) if isinstance(self.metric, EpisodicAccuracy) else preds

    def unknown_targets(self, x: Tensor, outputs: int) -> Tensor:
        """Targets where none are known: `query_loss` wants some, but its predictions do not depend on them."""
        return self.metric.unknown_targets(x, outputs)

    # ---- owned here ---------------------------------------------------------------------------------------------

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
            return self._map(self.adapt, support, mode=self._mode(support.x))

    def adapt_precision(self) -> AbstractContextManager:
        """In which `adapt` runs: fp32 under mixed precision, unless `adapt_in_fp32` is off."""
        return torch.autocast(self.device.type, enabled=False) if self.adapt_in_fp32 else nullcontext()

    def query_tasks(self, adapted: Any, query: Batch) -> TaskOutput:
        """`query_loss` for every task of a meta-batch."""
        if self._mode(query.x) == "loop":
            return self._loop(self.query_loss, adapted, query)
        return self._map(self.query_loss, adapted, query)

    def _map(self, fn: Callable[..., Any], *tasks: Any, mode: Literal["vmap", "loop"] = "vmap") -> Any:
        with repaired(self):
            return map_tasks(fn, *tasks, mode=mode, chunk_size=self.task_chunk_size)

    def _mode(self, x: Tensor) -> Literal["vmap", "loop"]:
        return choose_mode(self.task_mode, x)

    def _loop(self, play: Callable[..., TaskOutput], *tasks: Any) -> TaskOutput:
        if not torch.is_grad_enabled():
            return self._map(play, *tasks, mode="loop")
        with repaired(self):
            return loop_with_gradients(play, self.parameters(), *tasks)

    def play_as_it_can(self, tasks: Episode) -> TaskOutput:
        """`play`, but in a loop from now on where `task_mode: auto` took vmap and vmap cannot take the network.

        Raises:
            ConfigError: torch.func cannot take the network at all, or vmap cannot and was asked for.
        """
        try:
            return self.play(tasks)
        except (UserError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            refusal = error
        if self.task_mode == "loop":
            raise self._told(refusal)
        asked, self.task_mode = self.task_mode, "loop"
        if self._trainer is not None and self.trainer.training:
            self.seed_noise(self.batch_number)  # what has been drawn is drawn again
        try:
            out = self.play(tasks)
        except RuntimeError as error:
            self.task_mode = asked
            raise self._told(error) from None
        layer = layer_of(refusal, self)
        if asked == "vmap":
            self.task_mode = asked
            raise ConfigError(f"torch.vmap cannot take {layer}; set task_mode to loop or auto. {quoted(refusal)}")
        if self.global_rank == 0:
            logger.warning(
                "note: torch.vmap cannot take %s, so tasks are played one by one, as with task_mode: loop. %s",
                layer,
                quoted(refusal),
            )
        return out

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            super().backward(loss, *args, **kwargs)
        except RuntimeError as error:
            raise self._told(error) from None

    def _told(self, error: RuntimeError) -> RuntimeError:
        return explained(error, self) or error

    def measure(self, tasks: Tasks) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of a list, each part is played by itself; predictions of different shapes stay a list."""
        if isinstance(tasks, list):
            values, others = zip(*map(self.measure, tasks), strict=True)
            preds = [part.pop("preds") for part in others]
            return joined(values), {"preds": preds} | joined(others)
        out = self.play(tasks) if torch.compiler.is_compiling() else self.play_as_it_can(tasks)
        score = self.metric.per_episode(out.preds, tasks.query.y)
        also = () if self.training else self.metric.companions
        others = {other.name: other.per_episode(out.preds, tasks.query.y) for other in also}
        values = {"loss": out.loss, self.metric.name: score, **others, **out.logs}
        return values, {"preds": out.preds} | ({"buffers": out.buffers} if self.training else {})

    def predict_step(self, tasks: Tasks, batch_idx: int) -> Tensor | list[Tensor]:
        """Predictions `(T, Q, ...)` for the query sets; of a list, those of each part."""
        if isinstance(tasks, list):
            return [self.play_as_it_can(part).preds for part in tasks]
        return self.play_as_it_can(tasks).preds

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, EpisodicDataModule):
            for split in datamodule.sources:
                self.check_input(datamodule, split)
                for shape in datamodule.extremes(split):
                    if isinstance(self.metric, EpisodicAccuracy) and shape.n_way == 1:
                        raise ConfigError(
                            f"{split} episodes have n_way=1: among one class every answer is right; take 2."
                        )
                    self.check_task(shape, split)
                if datamodule.varies(split):
                    self.check_variable(split)
                if not datamodule.balanced(split):
                    self.check_shots([shape.k_shot for shape in datamodule.extremes(split)])
            self._fit_backbone(datamodule)

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        """Raise `ConfigError` when this algorithm cannot take the inputs or the targets of a split's episodes."""
        episode = datamodule.dataset(split)[0]
        self.check_input_shape(episode.support.x.shape[1:], type(datamodule).__name__)
        numbers = episode.query.y.is_floating_point()
        if numbers and isinstance(self.metric, EpisodicAccuracy):
            raise ConfigError(
                f"{type(self).__name__} measures accuracy, but the targets of {datamodule.name} are numbers; take an "
                "algorithm for regression, or a metric and a loss for it (see maml_sinusoid_5s)."
            )
        if not numbers and episode.query.y.dim() > 1 and isinstance(self.metric, EpisodicAccuracy):
            raise ConfigError(
                f"{type(self).__name__} names one class for each input, but the targets of {datamodule.name} have the "
                f"shape {tuple(episode.query.y.shape)}; masks are for ProtoSegmentation, "
                "sentences for MetaNMT, tags for TokenProtoNet, speech for MetaASR."
            )
        if not numbers and isinstance(self.metric, EpisodicMSE | EpisodicLogLikelihood):
            raise ConfigError(
                f"{type(self).__name__} predicts numbers, but the targets of {datamodule.name} are classes; take an "
                "algorithm that names classes (see protonet_glyphs_5w1s), or data with numbers."
            )
        backbone = getattr(self, "backbone", None)
        if isinstance(backbone, Backbone):
            backbone.check_data(datamodule)

    def on_fit_start(self) -> None:
        self._start_backbone()
        super().on_fit_start()

    def on_validation_start(self) -> None:
        self._start_backbone()

    def on_test_start(self) -> None:
        self._start_backbone()

    def on_predict_start(self) -> None:
        self._start_backbone()

    def _start_backbone(self) -> None:
        """Where neither training nor a checkpoint, which has been loaded by now, has given it its weights."""
        if self.pretrained is None or self.provenance is not None:
            return
        backbone = getattr(self, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ConfigError(f"pretrained={self.pretrained} is for a backbone, but {type(self).__name__} has none.")
        done = start_from(backbone, self.pretrained)
        if self.global_rank == 0:
            logger.info(done)

    def _fit_backbone(self, datamodule: EpisodicDataModule) -> None:
        """Before the optimizers are made; a checkpoint, which is loaded later, brings what its backbone found."""
        backbone = getattr(self, "backbone", None)
        if isinstance(backbone, FittedBackbone) and not backbone.fitted:
            backbone.fit(datamodule.training_inputs().cpu())
            backbone.fitted.fill_(True)

    def check_input_shape(self, shape: Sequence[int], source: str) -> None:
        """Raise `ConfigError` unless the backbone takes single inputs of this shape, which `source` has."""
        backbone = getattr(self, "backbone", None)
        if isinstance(backbone, Backbone):
            backbone.check_input_shape(shape, source)
