"""Algorithms that are trained to name classes as usual, and put a head on the features of each task afterwards."""

from typing import Any, Generic, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones.base import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.modules.embedding import ROWS, Head
from lightning_meta.modules.naming import NamingModule

Features = Literal["raw", "l2n", "cl2n"]
CENTRE_EXAMPLES = 2000  # at most so many training examples say where the centre of features is


class PretrainedModule(NamingModule[Any], Generic[Head]):
    """Base of algorithms whose training is supervised, on the classes of meta-training, and whose head is not trained.

    A subclass writes `fit_head` and `scores` for one task. They are used in evaluation alone, where the features are
    constants. A training step's batch is an episode, support and query pooled.

    Whatever is trained besides the backbone serves the training alone, so that such an algorithm can be tested on the
    checkpoint of any other that has the same backbone.

    Args:
        backbone, n_classes: of `NamingModule`.
        features: what a head sees of them: `raw`; `l2n`, divided by their lengths; `cl2n`, the mean of the features of
            meta-training subtracted before that.
        **kwargs: of `EmbeddingModule`.
    """

    center: Tensor | None

    def __init__(
        self, backbone: Backbone, n_classes: int | None = None, features: Features = "raw", **kwargs: Any
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.features = features
        self.register_buffer("center", None)

    # ---- an algorithm writes these two --------------------------------------------------------------------------

    def fit_head(self, support: Batch) -> Head:
        """Learn one task from the features of its support set. Returns any pytree of tensors."""
        raise NotImplementedError

    def scores(self, head: Head, query_QD: Tensor) -> Tensor:
        """Logits `(Q, C)` of the query set, from its features."""
        raise NotImplementedError

    # ---- training -----------------------------------------------------------------------------------------------

    def naming_loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """What is minimised in training."""
        return F.cross_entropy(logits_BC, labels_B)

    # ---- owned here ---------------------------------------------------------------------------------------------

    def adapt_head(self, support: Batch) -> Head | Batch:
        """In training the support set itself: it is part of the supervised batch."""
        return support if self.training else self.fit_head(Batch(self.prepared(support.x.detach()), support.y))

    def head_loss(self, head: Any, query: Batch) -> TaskOutput:
        if not self.training:
            logits_QC = self.scores(head, self.prepared(query.x))
            return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
        logits_BC = self.class_logits(torch.cat([head.x, query.x]))
        loss = self.naming_loss(logits_BC, torch.cat([head.y, query.y]))
        return TaskOutput(loss, logits_BC[len(head.y) :])

    def _mode(self, x: Tensor) -> Literal["vmap", "loop"]:
        """A head is a few products of small matrices, which vmap takes faster than a loop however many they are.

        (One CPU core, 100 tasks of 75 queries with 256 features: a step of TIM 24 ms, in a loop 235 ms.)
        """
        return super()._mode(x) if self.training or self.task_mode != "auto" else "vmap"

    def prepared(self, features_BD: Tensor) -> Tensor:
        """Features as a head sees them."""
        if self.features == "raw":
            return features_BD
        if self.features == "l2n":
            return F.normalize(features_BD, dim=1)
        if self.center is None:
            raise ConfigError(
                f"features=cl2n subtracts the mean of the training features, which this {type(self).__name__} does not "
                "know; train or test it with its data, call center_on(features), or set features to l2n."
            )
        return F.normalize(features_BD - self.center, dim=1)

    def center_on(self, features_ED: Tensor) -> None:
        """Take the mean of these training features as the centre."""
        self.center = features_ED.mean(0)

    def on_validation_start(self) -> None:
        """While weights are trained, the centre moves with them."""
        if self.trainer.state.fn == "fit":
            self.center = None
        self._find_center()

    def on_test_start(self) -> None:
        self._find_center()

    def on_predict_start(self) -> None:
        self._find_center()

    @torch.no_grad()
    def _find_center(self) -> None:
        """From training examples at even distances, unless a checkpoint has brought it."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.features != "cl2n" or self.center is not None or not isinstance(datamodule, ClassificationDataModule):
            return
        examples = datamodule.training_inputs()
        examples = examples[torch.arange(CENTRE_EXAMPLES) * len(examples) // CENTRE_EXAMPLES].to(self.device)
        self.center_on(torch.cat([self.embedded(rows) for rows in examples.split(ROWS)]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.another(checkpoint):
            self.center = None
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["state_dict"]
        self.center = saved["center"].to(self.device) if "center" in saved else None


class TransductiveModule(PretrainedModule[Batch]):
    """Base of those that read the whole query set before they name any of it. A subclass writes `transduce`.

    A prediction depends on which queries are given together, and on how many of them each class has: in ordinary
    episodes equally many, which some of these methods take for granted.
    """

    transductive = True

    def transduce(self, support: Batch, query_QD: Tensor) -> Tensor:
        """Logits `(Q, C)` of the query set, from its features and those of the support set with their labels."""
        raise NotImplementedError

    def fit_head(self, support: Batch) -> Batch:
        """Nothing can be done without the queries."""
        return support

    def scores(self, support: Batch, query_QD: Tensor) -> Tensor:
        return self.transduce(support, query_QD.detach())

    def check_task(self, shape: EpisodeShape, split: Split) -> None:
        super().check_task(shape, split)
        if split != "train" and shape.n_query == 1:
            raise ConfigError(
                f"{type(self).__name__} learns from how the queries of a task lie to each other, but {split} episodes "
                f"have n_query=1; give more of them, or take an inductive method such as SimpleShot."
            )
