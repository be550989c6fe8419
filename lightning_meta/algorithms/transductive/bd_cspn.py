"""BD-CSPN: class means are corrected by the queries: these are shifted to the support set, and the surest ones join it.

Liu, Song, Qin: "Prototype Rectification for Few-Shot Learning" (2020), arXiv:1911.10713.

It reads the whole query set: a prediction depends on the other queries.

Deviations: the training is Baseline's, see there, not with cosines. The queries are shifted where class means are
corrected, and compared with these unshifted, as in the code of those who compare with it (LaplacianShot, alpha-TIM).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch
from lightning_meta.core.prototypes import class_means, cosine_similarities, exclude_absent
from lightning_meta.modules import TransductiveModule
from lightning_meta.modules.pretrained import Features


def rectified(support: Batch, query_QD: Tensor, pseudo: int | None, sharpness: float) -> tuple[Tensor, Tensor]:
    """Class means `(C, D)` of the support set and of queries that join it; and which class slots exist `(C,)`.

    Args:
        support: features and labels.
        query_QD: features, which are shifted until their mean is the support set's.
        pseudo: how many queries join a class at most: those that are likest to its mean. None: all that are likest to
            this one.
        sharpness: examples of a class weigh `exp(sharpness * cosine)` of the angle to its former mean.
    """
    shifted_QD = query_QD + support.x.mean(0) - query_QD.mean(0)
    means_CD, present_C = class_means(support.x, support.y)
    cosines_QC = exclude_absent(cosine_similarities(shifted_QD, means_CD), present_C)
    joins_QC = F.one_hot(cosines_QC.argmax(1), len(means_CD)).bool()
    if pseudo is not None:
        places_QC = torch.where(joins_QC, -cosines_QC, torch.inf).argsort(0).argsort(0)
        joins_QC = joins_QC & (places_QC < pseudo)
    examples_MD = torch.cat([support.x, shifted_QD])
    belongs_MC = torch.cat([F.one_hot(support.y, len(means_CD)).bool(), joins_QC])
    weights_MC = belongs_MC * (sharpness * (cosine_similarities(examples_MD, means_CD) - 1)).exp()
    total_C = weights_MC.sum(0)
    return (weights_MC / torch.where(present_C, total_C, 1)).T @ examples_MD, present_C


class BDCSPN(TransductiveModule):
    """Cosines to class means that the queries have corrected.

    Args:
        backbone, n_classes, features: of `PretrainedModule`.
        pseudo, sharpness: see `rectified`; the defaults are the paper's.
        scale: of the cosines when they are turned into probabilities; it does not change which class is the likeliest.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        features: Features = "cl2n",
        pseudo: int | None = 8,
        sharpness: float = 10.0,
        scale: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, features, **kwargs)
        self.pseudo, self.sharpness, self.scale = pseudo, sharpness, scale

    def transduce(self, support: Batch, query_QD: Tensor) -> Tensor:
        means_CD, present_C = rectified(support, query_QD, self.pseudo, self.sharpness)
        return exclude_absent(self.scale * cosine_similarities(query_QD, means_CD), present_C)
