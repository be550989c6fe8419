"""Baseline++: pre-training and fine-tuning with a classifier of cosines, which draws the examples of a class together.

Chen, Liu, Kira, Wang, Huang: "A Closer Look at Few-shot Classification" (2019), arXiv:1904.04232, section 3.2.

Deviations: those of Baseline, but the fit to a task starts from the class means. One scale multiplies the cosines, by
default 10; in the authors' code it is 2, or 10 for more than 200 classes, and each class also learns the norm of its
weight vector.
"""

from typing import Any

from torch import Tensor

from lightning_meta.algorithms.baselines.baseline import Baseline
from lightning_meta.backbones import Backbone
from lightning_meta.core import Params
from lightning_meta.core.prototypes import class_means, cosine_similarities


class BaselinePlusPlus(Baseline):
    """Baseline whose logits are `scale * cos(feature, weight vector of the class)`.

    Args:
        backbone, n_classes: of `Baseline`.
        scale: of the cosines. The largest logit is `scale`, so many training classes need a large one.
        **kwargs: of `Baseline`.
    """

    bias = False

    def __init__(self, backbone: Backbone, n_classes: int | None = None, scale: float = 10.0, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.scale = scale

    def logits(self, head: Params, features_BD: Tensor) -> Tensor:
        return self.scale * cosine_similarities(features_BD, head["weight"])

    def first_head(self, features_SD: Tensor, labels_S: Tensor) -> Params:
        return {"weight": class_means(features_SD, labels_S)[0]}
