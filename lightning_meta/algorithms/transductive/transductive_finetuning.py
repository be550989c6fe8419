"""Transductive fine-tuning: a classifier is fitted to the support set and, at once, made sure of the queries.

Dhillon, Chaudhari, Ravichandran, Soatto: "A Baseline for Few-Shot Image Classification" (2020), arXiv:1909.02729.

It reads the whole query set: a prediction depends on the other queries. The loss is the cross-entropy of the support
set plus the mean entropy of the predictions for the queries.

Deviations: the training is Baseline's, see there. The classifier alone is tuned, on the features; the authors tune the
whole network, on its logits. At their rate, the default, it moves little; at one that is 20 times as large, features
that have not been centred may all be taken for one class. Cosines have a scale; in the paper, none.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.transductive.tim import entropy
from lightning_meta.backbones import Backbone
from lightning_meta.core import Adam, Batch, Params, unroll
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.modules import TransductiveModule
from lightning_meta.modules.pretrained import Features


class TransductiveFinetuning(TransductiveModule):
    """A linear classifier that begins at the class means and is tuned on support and query.

    Args:
        backbone, n_classes, features: of `PretrainedModule`.
        steps, inner_lr: of Adam, on the classifier.
        scale: of the logits, which are cosines at the start.
        query_weight: of the mean entropy of predictions.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        features: Features = "l2n",
        steps: int = 25,
        inner_lr: float = 5e-5,
        scale: float = 10.0,
        query_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, features, **kwargs)
        self.steps, self.inner_optimizer = steps, Adam(inner_lr)
        self.scale, self.query_weight = scale, query_weight

    def transduce(self, support: Batch, query_QD: Tensor) -> Tensor:
        means_CD, present_C = class_means(support.x, support.y)

        def logits(head: Params, features_BD: Tensor) -> Tensor:
            return exclude_absent(self.scale * F.linear(features_BD, head["weight"], head["bias"]), present_C)

        def loss(head: Params) -> Tensor:
            named = F.cross_entropy(logits(head, support.x), support.y)
            return named + self.query_weight * entropy(logits(head, query_QD).softmax(1)).mean()

        start = {"weight": F.normalize(means_CD, dim=1), "bias": means_CD.new_zeros(len(means_CD))}
        return logits(unroll(loss, start, self.inner_optimizer, self.steps, first_order=True), query_QD)
