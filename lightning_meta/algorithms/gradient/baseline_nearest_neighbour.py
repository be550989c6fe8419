"""Baseline-nearest-neighbour: the label of the support example that is closest in a pre-trained embedding.

Ravi, Larochelle: "Optimization as a Model for Few-Shot Learning" (2017), ICLR, section 5.1, where it is the floor of
table 1: a network is trained to name the meta-train classes, and examples are compared by the cosine of its features.

Deviations: the training is Baseline's, see there.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.algorithms.gradient.baseline import Baseline
from lightning_meta.backbones import Backbone
from lightning_meta.core import Params
from lightning_meta.core.prototypes import cosine_similarities


class BaselineNearestNeighbour(Baseline):
    """Baseline's training; in evaluation one nearest neighbour by cosine in place of a fitted head.

    Args:
        backbone, n_classes: of `Baseline`.
        scale: of the cosines when they are turned into probabilities; it does not change which class is the likeliest.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(self, backbone: Backbone, n_classes: int | None = None, scale: float = 10.0, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, eval_inner_steps=0, **kwargs)
        self.scale = scale

    def first_head(self, features_SD: Tensor, labels_S: Tensor) -> Params:
        return {"examples": features_SD, "labels": labels_S}

    def logits(self, head: Params, features_BD: Tensor) -> Tensor:
        """In evaluation, a class's score is that of its nearest example."""
        if "examples" not in head:
            return super().logits(head, features_BD)
        scores_QS = self.scale * cosine_similarities(features_BD, head["examples"])
        slots_C = torch.arange(len(head["labels"]), device=scores_QS.device)
        return torch.where(head["labels"] == slots_C[:, None], scores_QS[:, None], -torch.inf).amax(-1)
