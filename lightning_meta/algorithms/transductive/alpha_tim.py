"""Alpha-TIM: TIM with entropies that do not insist on as many queries of each class.

Veilleux, Boudiaf, Piantanida, Ben Ayed: "Realistic Evaluation of Transductive Few-Shot Learning" (2021),
arXiv:2204.11181.

It reads the whole query set: a prediction depends on the other queries. Tsallis' entropy of order alpha,
`(1 - sum_c p_c^alpha) / (alpha - 1)`, is Shannon's at alpha = 1. The larger alpha is, the less it is worth to make a
mean prediction uniform that is nearly so.

Deviations: the training is Baseline's, see there, without smoothed labels. One alpha for all numbers of shots and data,
by default 2, which was better than 5 on validation episodes of CIFAR-FS (Conv4); the authors choose it for each.
"""

from typing import Any

from torch import Tensor

from lightning_meta.algorithms.transductive.tim import TIM, TINY, entropy
from lightning_meta.backbones import Backbone


def tsallis_entropy(probabilities: Tensor, alpha: float) -> Tensor:
    """Over the last axis; at alpha = 1 its limit, Shannon's."""
    if alpha == 1:
        return entropy(probabilities)
    return (1 - (probabilities + TINY).pow(alpha).sum(-1)) / (alpha - 1)


class AlphaTIM(TIM):
    """TIM with entropies of order alpha, and equal weights.

    Args:
        backbone, n_classes: of `PretrainedModule`.
        alpha: order of the entropies, positive.
        support_weight, marginal_weight, conditional_weight: of `TIM`; the authors' are all 1.
        **kwargs: of `TIM`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        alpha: float = 2.0,
        support_weight: float = 1.0,
        marginal_weight: float = 1.0,
        conditional_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            n_classes,
            support_weight=support_weight,
            marginal_weight=marginal_weight,
            conditional_weight=conditional_weight,
            **kwargs,
        )
        self.alpha = alpha

    def entropy(self, probabilities: Tensor) -> Tensor:
        return tsallis_entropy(probabilities, self.alpha)
