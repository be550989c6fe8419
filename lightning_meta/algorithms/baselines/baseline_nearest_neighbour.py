"""Baseline-nearest-neighbour: the label of the support example that is closest in a pre-trained embedding.

Ravi, Larochelle: "Optimization as a Model for Few-Shot Learning" (2017), ICLR, section 5.1, where it is the floor of
table 1: a network is trained to name the meta-train classes, and examples are compared by the cosine of its features.

Deviations: the training is Baseline's, see there.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch
from lightning_meta.core.prototypes import cosine_similarities
from lightning_meta.modules import PretrainedModule


class BaselineNearestNeighbour(PretrainedModule[Batch]):
    """Baseline's training; in evaluation one nearest neighbour by cosine in place of a fitted head.

    Args:
        backbone, n_classes: of `PretrainedModule`.
        scale: of the cosines when they are turned into probabilities; it does not change which class is the likeliest.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(self, backbone: Backbone, n_classes: int | None = None, scale: float = 10.0, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.scale = scale

    def fit_head(self, support: Batch) -> Batch:
        """Nothing is fitted: the examples are the head."""
        return support

    def scores(self, support: Batch, query_QD: Tensor) -> Tensor:
        """A class's score is that of its nearest example."""
        scores_QS = self.scale * cosine_similarities(query_QD, support.x)
        slots_C = torch.arange(len(support.y), device=scores_QS.device)
        return torch.where(support.y == slots_C[:, None], scores_QS[:, None], -torch.inf).amax(-1)
