"""Baseline: pre-train on all meta-train classes, then fit a new linear head to each task's support set.

Chen, Liu, Kira, Wang, Huang: "A Closer Look at Few-shot Classification" (2019), arXiv:1904.04232, section 3.2.

Deviations: a training step's batch is an episode, support and query pooled, so it has `n_way` classes with `k_shot +
n_query` examples each (several episodes: the mean of their losses). The head is fitted by
plain gradient descent on the whole support set from zeros; in the paper, from a random draw, by mini-batches of 4 and
with momentum, dampening and weight decay. Images are not augmented.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, unroll
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import PretrainedModule


class Fitted(NamedTuple):
    """A head for one task, and which class slots `(C,)` exist in it."""

    head: Params
    present: Tensor


class Baseline(PretrainedModule[Fitted]):
    """Supervised training on class labels; in evaluation, a head fitted to frozen features of the support set.

    Args:
        backbone, n_classes: of `PretrainedModule`.
        inner_lr: step size when a head is fitted.
        eval_inner_steps: steps when a head is fitted, in validation and test. Training has no inner loop.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        inner_lr: float = 0.01,
        eval_inner_steps: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if eval_inner_steps < 0:
            raise ConfigError(f"eval_inner_steps={eval_inner_steps} must not be negative.")
        self.eval_inner_steps = eval_inner_steps
        self.inner_optimizer: InnerOptimizer = SGD(inner_lr)

    def logits(self, head: Params, features_BD: Tensor) -> Tensor:
        """Scores `(B, C)` under a head, the training classes' or a fitted one."""
        return F.linear(features_BD, head["weight"], head["bias"])

    def class_logits(self, features_BD: Tensor) -> Tensor:
        return self.logits(dict(self.trained_classifier.named_parameters()), features_BD)

    def first_head(self, features_SD: Tensor, labels_S: Tensor) -> Params:
        """Where the fit to a task starts. As many class slots as support examples: the way is not known from shapes."""
        return {"weight": torch.zeros_like(features_SD), "bias": torch.zeros_like(features_SD[:, 0])}

    def fit_head(self, support: Batch) -> Fitted:
        present_C = F.one_hot(support.y, len(support.y)).any(0)

        def loss(head: Params) -> Tensor:
            return F.cross_entropy(exclude_absent(self.logits(head, support.x), present_C), support.y)

        start = self.first_head(support.x, support.y)
        head = unroll(loss, start, self.inner_optimizer, self.eval_inner_steps, first_order=True)
        return Fitted(head, present_C)

    def scores(self, fitted: Fitted, query_QD: Tensor) -> Tensor:
        return exclude_absent(self.logits(fitted.head, query_QD), fitted.present)
