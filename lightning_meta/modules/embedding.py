"""Algorithms that compare features: support and query are embedded once, then a head is adapted to the features."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.backbones.norm import (
    MetaBatch,
    batch_norm_layers,
    embedding_pass,
    norm_protocol,
    support_statistics,
)
from lightning_meta.backbones.wrap import as_backbone
from lightning_meta.compat import BatchNormBase
from lightning_meta.core import Batch, Episode, Params, TaskOutput
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.files import whole_or_not_at_all
from lightning_meta.errors import ConfigError
from lightning_meta.modules.episodic import EpisodicModule

Head = TypeVar("Head")
ROWS = 1000  # inputs that are embedded at once where nothing is trained


class Embedded(NamedTuple):
    """What one support set gave: the adapted head, and statistics for the query's normalisation."""

    head: Any
    statistics: Params


class EmbeddingModule(EpisodicModule[Embedded], Generic[Head]):
    """Base of algorithms whose backbone is the same before and after adaptation.

    A subclass writes `adapt_head` and `head_loss` for one task, pure functions as `adapt` and `query_loss` are, which
    see features `(S, D)` and `(Q, D)` in place of inputs. The support and query sets of a whole meta-batch go through
    the backbone in one pass. What its normalisation protocol means there:

    - `inductive`, `transductive`: statistics are those of each task, as if tasks had been embedded one by one.
    - `running`: in training, the statistics of the whole meta-batch, support and query together. On several devices
      those of a device's share, so that training differs from that on one, unless `Trainer(sync_batchnorm=True)`.

    Under bf16-mixed the backbone computes in bfloat16 and the head in fp32, unless `adapt_in_fp32` is off.

    Args:
        backbone: the embedding, from inputs `(B, ...)` to features `(B, D)`. Any other network is `Wrapped`, with the
            protocol `running`.
        freeze: train the rest only. The backbone stays in evaluation mode, and its features of a data set of classes
            are computed once and kept in a file, so that an epoch costs next to nothing. (Not where features depend on
            the episode: with a protocol other than `running`, or new classes by task augmentation.)
        feature_folder: of these files. A file belongs to the backbone's weights and the data.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self, backbone: nn.Module, freeze: bool = False, feature_folder: str = "data/features", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = as_backbone(backbone, norm="running")
        self.frozen, self.feature_folder = freeze, Path(feature_folder)
        self._data_has_features = False
        if freeze:
            self.backbone.requires_grad_(False)

    # ---- an algorithm writes these two --------------------------------------------------------------------------

    def adapt_head(self, support: Batch) -> Head:
        """Learn one task from the features of its support set. Returns any pytree of tensors (prototypes, ...)."""
        raise NotImplementedError

    def head_loss(self, head: Head, query: Batch) -> TaskOutput:
        """Evaluate what `adapt_head` returned on the features of the query set."""
        raise NotImplementedError

    # ---- owned here ---------------------------------------------------------------------------------------------

    def adapt(self, support: Batch) -> Embedded:
        """Learn one task from its support set of inputs `(S, ...)`."""
        if self._data_has_features:
            return Embedded(self.adapt_head(support), {})
        head = self.adapt_head(Batch(self.backbone(support.x), support.y))
        return Embedded(head, support_statistics(self.backbone, {}, support.x))

    def query_loss(self, embedded: Embedded, query: Batch) -> TaskOutput:
        if not self._data_has_features:
            query = Batch(functional_call(self.backbone, embedded.statistics, (query.x,)), query.y)
        return self.head_loss(embedded.head, query)

    def play(self, tasks: Episode) -> TaskOutput:
        tasks = self.embed_tasks(tasks)
        with self.adapt_precision():
            mode = self._mode(tasks.query.x)
            heads = self._map(self.adapt_head, tasks.support, mode=mode)
            return self._map(self.head_loss, heads, tasks.query, mode=mode)

    def embed_tasks(self, tasks: Episode) -> Episode:
        """The meta-batch with features `(T, S, D)` and `(T, Q, D)` in place of inputs."""
        if self._data_has_features:
            return tasks
        size = self._tasks_of_a_pass(tasks)
        if any(isinstance(layer, BatchNormBase) and not layer.track_running_stats for layer in self.backbone.modules()):
            parts = [self._embed_separately(*x) for x in zip(tasks.support.x, tasks.query.x, strict=True)]
        else:
            chunks = zip(tasks.support.x.split(size), tasks.query.x.split(size), strict=True)
            parts = [self._embed(*chunk) for chunk in chunks]
        support_TSD, query_TQD = (torch.cat(side) for side in zip(*parts, strict=True))
        return Episode(Batch(support_TSD, tasks.support.y), Batch(query_TQD, tasks.query.y))

    def _tasks_of_a_pass(self, tasks: Episode) -> int:
        """All of them, where they are normalised together; otherwise as many as memory is to be spent on."""
        if self.training and "running" in norm_protocol(self.backbone):
            return len(tasks.support.x)
        images = tasks.support.x.shape[1] + tasks.query.x.shape[1]
        return self.task_chunk_size or (len(tasks.support.x) if self.training else max(1, ROWS // images))

    def _embed(self, support: Tensor, query: Tensor) -> list[Tensor]:
        """Features of some tasks' support `(T, S, ...)` and query inputs `(T, Q, ...)`."""
        rows = [x.flatten(0, 1) for x in (support, query)]
        with embedding_pass(self.backbone, MetaBatch(len(support), len(rows[0]))):
            features = self._features(torch.cat(rows))
        return [part.unflatten(0, (len(support), -1)) for part in features.split([len(part) for part in rows])]

    def _embed_separately(self, support: Tensor, query: Tensor) -> list[Tensor]:
        """Where a foreign layer knows no tasks, and would normalise by all of them: one task, one set at a time."""
        statistics = support_statistics(self.backbone, {}, support)
        return [self._features(support)[None], self._features(query, statistics)[None]]

    def _features(self, x: Tensor, statistics: Params | None = None) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = functional_call(self.backbone, statistics, (x,)) if statistics else self.backbone(x)
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def _mode(self, x: Tensor) -> Literal["vmap", "loop"]:
        """A head with running statistics, which vmap cannot update, is mapped by a loop."""
        layers = batch_norm_layers(self).items()
        running = any(layer.protocol == "running" for name, layer in layers if not name.startswith("backbone."))
        return "loop" if self.task_mode == "auto" and self.training and running else super()._mode(x)

    # ---- frozen backbones ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def setup(self, stage: str) -> None:
        super().setup(stage)
        own = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        if self.trainer.precision == "bf16-true" and any(weights.ndim for weights in own):
            raise ConfigError(
                f"precision=bf16-true holds the weights of {type(self).__name__}'s head in bfloat16, but a head "
                "computes in fp32; use bf16-mixed."
            )
        for layer in batch_norm_layers(self).values():
            layer.synchronised = getattr(self.trainer.strategy, "_layer_sync", None) is not None
        datamodule = getattr(self.trainer, "datamodule", None)
        if not self.frozen or norm_protocol(self.backbone) not in ("running", "no batch statistics"):
            return
        if isinstance(datamodule, ClassificationDataModule) and not datamodule.task_augmentation:
            datamodule.embed_by(self.features_of)
            self._data_has_features = True

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self._data_has_features = False

    @classmethod
    def another(cls, checkpoint: dict[str, Any]) -> str | None:
        """The name of the algorithm whose checkpoint it is; None where it is this one, or not known."""
        name = checkpoint.get("hyper_parameters", {}).get("_class_path", "").rpartition(".")[-1]
        return None if name in ("", cls.__name__) else name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of another algorithm's checkpoint, which can be tested but not trained further, the backbone is taken."""
        super().on_load_checkpoint(checkpoint)
        if other := self.another(checkpoint):
            weights = {name: w for name, w in checkpoint["state_dict"].items() if name.startswith("backbone.")}
            if lacking := self.state_dict().keys() - weights:
                raise ConfigError(
                    f"{type(self).__name__} needs {', '.join(sorted(lacking)[:3])}, which a checkpoint of {other} has "
                    "not; give one of the same algorithm with the same backbone, or test an algorithm that trains "
                    "nothing but a backbone of these settings, such as SimpleShot."
                )
            checkpoint["state_dict"] = weights

    @torch.no_grad()
    def features_of(self, examples: Tensor) -> Tensor:
        """Features `(E, D)` of all examples `(E, ...)` of a data set, from the file that has them or from the backbone.

        Args:
            examples: as a `ClassBank` holds them: images as uint8, or token ids.
        """
        tensors = [examples, *self.backbone.state_dict().values()]
        path = self.feature_folder / f"{fingerprint(tensors, repr(self.backbone))}.pt"
        if path.exists():
            return torch.load(path, weights_only=True).to(examples.device)
        device = next(self.backbone.parameters()).device
        parts = [self.embedded(rows.to(device)) for rows in examples.split(ROWS)]
        features = torch.cat(parts).to(examples.device)
        with whole_or_not_at_all(path) as unfinished:
            torch.save(features.cpu(), unfinished)
        return features

    def embedded(self, examples: Tensor) -> Tensor:
        """Features `(E, D)` of examples as a `ClassBank` holds them, in the module's present mode."""
        return self._features(examples.float().div(255) if examples.dtype == torch.uint8 else examples)


def fingerprint(tensors: Iterable[Tensor], text: str) -> str:
    """SHA-256 of tensors and a text, in short."""
    digest = sha256(text.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:24]
