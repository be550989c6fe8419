"""RFS: logistic regression on features of length one, "a good embedding is all you need".

Tian, Wang, Krishnan, Tenenbaum, Isola: "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?"
(2020), arXiv:2003.11539.

The regression is scikit-learn's, as in the authors' code: the cross-entropies of the support set, summed and weighted
by C = 1, plus half the squared length of the weights, biases left out.

Deviations: the training is Baseline's, see there; the paper's distillation is in `born_again.py`. The support set is
not enlarged by distorted copies of its images. The minimum is approached by Nesterov's method in a fixed number of
steps, not by L-BFGS.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.baselines.baseline import Fitted
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Momentum, Params, unroll
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.modules import PretrainedModule
from lightning_meta.modules.pretrained import Features


def logits(head: Params, features_BD: Tensor, present_C: Tensor) -> Tensor:
    return exclude_absent(F.linear(features_BD, head["weight"], head["bias"]), present_C)


def regression_loss(head: Params, support: Batch, present_C: Tensor, strength: float) -> Tensor:
    """`strength` times the summed cross-entropies, plus half the squared length of the weights."""
    entropies = F.cross_entropy(logits(head, support.x, present_C), support.y, reduction="sum")
    return strength * entropies + head["weight"].square().sum() / 2


class RFS(PretrainedModule[Fitted]):
    """Baseline's training; in evaluation logistic regression on the support set.

    Args:
        backbone, n_classes, features: of `PretrainedModule`.
        strength: of the support set against the penalty on the weights; scikit-learn's C.
        steps: of Nesterov's method. Lengths of one bound the curvature by `1 + strength * S`, which gives its rate.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        features: Features = "l2n",
        strength: float = 1.0,
        steps: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, features, **kwargs)
        self.strength, self.steps = strength, steps

    def fit_head(self, support: Batch) -> Fitted:
        present_C = F.one_hot(support.y, len(support.y)).any(0)
        start = {"weight": torch.zeros_like(support.x), "bias": torch.zeros_like(support.x[:, 0])}
        # Softmax curves by 1/2 at most, and an example and its one for the bias have a squared length of 2.
        curvature = 1 + self.strength * len(support.y)
        momentum = (sqrt(curvature) - 1) / (sqrt(curvature) + 1)
        rule = Momentum(1 / curvature, momentum, nesterov=True)
        head = unroll(
            lambda head: regression_loss(head, support, present_C, self.strength),
            start, rule, self.steps, first_order=True,
        )  # fmt: skip
        return Fitted(head, present_C)

    def scores(self, fitted: Fitted, query_QD: Tensor) -> Tensor:
        return logits(fitted.head, query_QD, fitted.present)
