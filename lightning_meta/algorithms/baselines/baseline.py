"""Baseline: pre-train on all meta-train classes, then fit a new linear head to each task's support set.

Chen, Liu, Kira, Wang, Huang: "A Closer Look at Few-shot Classification" (2019), arXiv:1904.04232, section 3.2.

Deviations: a training step's batch is an episode, support and query pooled, so it has `n_way` classes with `k_shot +
n_query` examples each (several episodes: the mean of their losses). The head is fitted by
plain gradient descent on the whole support set from zeros; in the paper, from a random draw, by mini-batches of 4 and
with momentum, dampening and weight decay. Images are not augmented.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, TaskOutput, unroll
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.datamodules import ClassificationDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule


class Fitted(NamedTuple):
    """A head for one task, and which class slots `(C,)` exist in it."""

    head: Params
    present: Tensor


class Baseline(EmbeddingModule[Batch | Fitted]):
    """Supervised training on class labels; in evaluation, a head fitted to frozen features of the support set.

    Args:
        backbone: feature extractor.
        n_classes: of meta-training. None: as many as the datamodule has.
        inner_lr: step size when a head is fitted.
        eval_inner_steps: steps when a head is fitted, in validation and test. Training has no inner loop.
        **kwargs: of `EmbeddingModule`.
    """

    needs = frozenset({"class_labels"})
    backbone: Backbone
    bias = True

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        inner_lr: float = 0.01,
        eval_inner_steps: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if eval_inner_steps < 0:
            raise ConfigError(f"eval_inner_steps={eval_inner_steps} must not be negative.")
        self.eval_inner_steps = eval_inner_steps
        self.inner_optimizer: InnerOptimizer = SGD(inner_lr)
        self.classifier: nn.Linear | None = None if n_classes is None else self.new_classifier(n_classes)

    def new_classifier(self, n_classes: int) -> nn.Linear:
        return nn.Linear(self.backbone.out_features, n_classes, self.bias, device=self.device, dtype=self.dtype)

    def logits(self, head: Params, features_BD: Tensor) -> Tensor:
        """Scores `(B, C)` under a head, the training classes' or a fitted one."""
        return F.linear(features_BD, head["weight"], head["bias"])

    def first_head(self, features_SD: Tensor, labels_S: Tensor) -> Params:
        """Where the fit to a task starts. As many class slots as support examples: the way is not known from shapes."""
        return {"weight": torch.zeros_like(features_SD), "bias": torch.zeros_like(features_SD[:, 0])}

    def adapt_head(self, support: Batch) -> Batch | Fitted:
        """In training the support set itself: it is part of the supervised batch."""
        if self.training:
            return support
        features_SD = support.x.detach()
        present_C = F.one_hot(support.y, len(support.y)).any(0)

        def loss(head: Params) -> Tensor:
            return F.cross_entropy(exclude_absent(self.logits(head, features_SD), present_C), support.y)

        start = self.first_head(features_SD, support.y)
        head = unroll(loss, start, self.inner_optimizer, self.eval_inner_steps, first_order=True)
        return Fitted(head, present_C)

    def head_loss(self, adapted: Batch | Fitted, query: Batch) -> TaskOutput:
        if isinstance(adapted, Fitted):
            logits_QC = exclude_absent(self.logits(adapted.head, query.x), adapted.present)
            return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
        if self.classifier is None:
            raise ConfigError(f"{type(self).__name__} has no classifier to train yet; pass n_classes.")
        logits_BC = self.logits(dict(self.classifier.named_parameters()), torch.cat([adapted.x, query.x]))
        loss = F.cross_entropy(logits_BC, torch.cat([adapted.y, query.y]))
        return TaskOutput(loss, logits_BC[len(adapted.y) :])

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._follow_classes()
        super().setup(stage)

    def _follow_classes(self) -> None:
        """Before training, make the classifier for their classes."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, ClassificationDataModule):
            raise ConfigError(
                f"{type(self).__name__} is trained to name classes, but {type(datamodule).__name__} has none; take a "
                "ClassificationDataModule, such as Omniglot."
            )
        n_classes = datamodule.n_classes("train")
        if self.classifier is None:
            self.classifier = self.new_classifier(n_classes)
        if self.classifier.out_features != n_classes:
            raise ConfigError(
                f"the classifier has n_classes={self.classifier.out_features}, but meta-training has {n_classes} "
                "classes; leave n_classes out to follow the data."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A module that was not trained in this process has no classifier for the weights of the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        if self.classifier is None and "classifier.weight" in checkpoint["state_dict"]:
            self.classifier = self.new_classifier(len(checkpoint["state_dict"]["classifier.weight"]))
