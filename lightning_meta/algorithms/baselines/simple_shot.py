"""SimpleShot: the nearest class mean of features that are centred and divided by their lengths.

Wang, Chao, Weinberger, van der Maaten: "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning"
(2019), arXiv:1911.04623.

`features` chooses among the paper's three: `raw` (its UN), `l2n` and `cl2n`, the best one, which subtracts the mean of
the training features first.

Deviations: the training is Baseline's, see there. That mean is taken over 2,000 training examples at even distances;
the paper takes it over all of them.
"""

from typing import Any, NamedTuple

from torch import Tensor

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.modules import PretrainedModule
from lightning_meta.modules.pretrained import Features


class Prototypes(NamedTuple):
    """Class means `(C, D)`, and which class slots have one `(C,)`."""

    means: Tensor
    present: Tensor


class SimpleShot(PretrainedModule[Prototypes]):
    """Baseline's training; in evaluation the nearest class mean.

    Args:
        backbone, n_classes, features: of `PretrainedModule`.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self, backbone: Backbone, n_classes: int | None = None, features: Features = "cl2n", **kwargs: Any
    ) -> None:
        super().__init__(backbone, n_classes, features, **kwargs)

    def fit_head(self, support: Batch) -> Prototypes:
        return Prototypes(*class_means(support.x, support.y))

    def scores(self, prototypes: Prototypes, query_QD: Tensor) -> Tensor:
        return exclude_absent(-squared_distances(query_QD, prototypes.means), prototypes.present)
