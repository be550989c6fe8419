"""Neg-Cosine: Baseline++ that is trained with a negative margin, which lets classes overlap and features stay general.

Liu, Cao, Lin, Li, Zhang, Long, Hu: "Negative Margin Matters: Understanding Margin in Few-Shot Classification" (2020),
arXiv:2003.12060.

Deviations: those of Baseline++, with its one scale for training and for the head of a task; the authors' code has 30
and 5.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.baselines.baseline_plus_plus import BaselinePlusPlus
from lightning_meta.backbones import Backbone


class NegCosine(BaselinePlusPlus):
    """Baseline++ whose training subtracts a margin from the cosine of the true class.

    Args:
        backbone, n_classes, scale: of `BaselinePlusPlus`.
        margin: negative ones are the paper's; with 0 it is Baseline++, with positive ones CosFace.
        **kwargs: of `BaselinePlusPlus`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        scale: float = 30.0,
        margin: float = -0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, scale, **kwargs)
        self.margin = margin

    def naming_loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        true_BC = F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
        return F.cross_entropy(logits_BC - self.scale * self.margin * true_BC, labels_B)
