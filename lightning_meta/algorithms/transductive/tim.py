"""TIM: class means are moved until the predictions for the queries say as much as they can about their features.

Boudiaf, Masud, Rony, Dolz, Piantanida, Ben Ayed: "Transductive Information Maximization for Few-Shot Learning" (2020),
arXiv:2008.11297; its TIM-GD.

It reads the whole query set: a prediction depends on the other queries. The mutual information of queries and
predictions is the entropy of their mean prediction minus the mean of their entropies. The former is largest where all
classes are equally many, which it takes for granted.

Deviations: the training is Baseline's, see there, without smoothed labels.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Adam, Batch, Params, unroll
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.modules import TransductiveModule
from lightning_meta.modules.pretrained import Features

TINY = 1e-12  # keeps the slope of an entropy finite where a probability is zero


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon's, over the last axis."""
    return -(probabilities * (probabilities + TINY).log()).sum(-1)


class TIM(TransductiveModule):
    """Class weights that begin at the class means and maximise mutual information, the support set named right.

    Args:
        backbone, n_classes, features: of `PretrainedModule`.
        steps, inner_lr: of Adam, on the class weights.
        sharpness: logits are minus half the squared distances to class weights, times this.
        support_weight: of the cross-entropy of the support set.
        marginal_weight: of the entropy of the mean prediction, which grows.
        conditional_weight: of the mean entropy of predictions, which falls.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        features: Features = "l2n",
        steps: int = 1000,
        inner_lr: float = 1e-4,
        sharpness: float = 15.0,
        support_weight: float = 0.1,
        marginal_weight: float = 1.0,
        conditional_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, features, **kwargs)
        self.steps, self.inner_optimizer, self.sharpness = steps, Adam(inner_lr), sharpness
        self.support_weight, self.marginal_weight = support_weight, marginal_weight
        self.conditional_weight = conditional_weight

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Of distributions in the last axis."""
        return entropy(probabilities)

    def logits(self, weights_CD: Tensor, features_BD: Tensor, present_C: Tensor) -> Tensor:
        return exclude_absent(-self.sharpness / 2 * squared_distances(features_BD, weights_CD), present_C)

    def transduce(self, support: Batch, query_QD: Tensor) -> Tensor:
        means_CD, present_C = class_means(support.x, support.y)

        def loss(params: Params) -> Tensor:
            named = F.cross_entropy(self.logits(params["weights"], support.x, present_C), support.y)
            probabilities_QC = self.logits(params["weights"], query_QD, present_C).softmax(1)
            marginal = self.entropy(probabilities_QC.mean(0))
            conditional = self.entropy(probabilities_QC).mean()
            information = self.marginal_weight * marginal - self.conditional_weight * conditional
            return self.support_weight * named - information

        fitted = unroll(loss, {"weights": means_CD}, self.inner_optimizer, self.steps, first_order=True)
        return self.logits(fitted["weights"], query_QD, present_C)
