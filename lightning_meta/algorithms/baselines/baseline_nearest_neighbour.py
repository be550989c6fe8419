"""Baseline-nearest-neighbour: the label of the support example that is closest in a pre-trained embedding.

Ravi, Larochelle: "Optimization as a Model for Few-Shot Learning" (2017), ICLR, section 5.1, where it is the floor of
table 1: a network is trained to name the meta-train classes, and examples are compared by the cosine of its features.

Deviations: the training is Baseline's, see there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.baselines.baseline import Baseline, Fitted
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.core.prototypes import cosine_similarities


class BaselineNearestNeighbour(Baseline):
    """Baseline's training; in evaluation one nearest neighbour by cosine in place of a fitted head.

    Args:
        backbone, n_classes: of `Baseline`.
        scale: of the cosines when they are turned into probabilities; it does not change which class is the likeliest.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, n_classes: int | None = None, scale: float = 10.0, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, eval_inner_steps=0, **kwargs)
        del self.eval_inner_steps  # nothing is fitted, so there is no adaptation to draw a curve of
        self.scale = scale

    def adapt_head(self, support: Batch) -> Batch | Fitted:
        """In training, as in `Baseline`, the support set itself."""
        if self.training:
            return support
        head = {"examples": support.x.detach(), "labels": support.y}
        present_C = F.one_hot(support.y, len(support.y)).any(0)
        return Fitted(head, present_C)

    def logits(self, head: Params, features_BD: Tensor) -> Tensor:
        """In evaluation, a class's score is that of its nearest example."""
        if "examples" not in head:
            return super().logits(head, features_BD)
        scores_QS = self.scale * cosine_similarities(features_BD, head["examples"])
        slots_C = torch.arange(len(head["labels"]), device=scores_QS.device)
        return torch.where(head["labels"] == slots_C[:, None], scores_QS[:, None], -torch.inf).amax(-1)
