"""DN4: classify an image by the nearest neighbours of its local descriptors among those of each class.

Li, Wang, Xu, Huo, Gao, Luo: "Revisiting Local Descriptor based Image-to-Class Measure for Few-shot Learning" (2019),
arXiv:1903.12290.

Every place of a feature map is a descriptor. A class is the pool of the descriptors of its support images, so that it
is not blurred by a mean, and has more of them the more images it has.

Deviations: the backbone's rectifiers are not leaky, and its weights are drawn as those of other metric methods here; a
class with fewer descriptors than there are neighbours counts those that it has.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule


class DN4(EmbeddingModule[Batch]):
    """Logits are sums of cosines: of each descriptor of a query with its nearest neighbours in a class.

    Shapes: `M` places of a map, `P` those of another map, `K` neighbours; the rest as in `core/episode.py`.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` if it has one (see
            `Conv4`), otherwise as maps of one pixel.
        neighbours: how many count for each descriptor (the paper's k).
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, neighbours: int = 3, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        if neighbours < 1:
            raise ConfigError(f"neighbours={neighbours} must be at least 1.")
        self.neighbours, self.map_shape = neighbours, map_shape(self.backbone)

    def adapt_head(self, support: Batch) -> Batch:
        """Descriptors of length 1 `(S, P, D)` and the labels of their images."""
        return Batch(F.normalize(descriptors(support.x, self.map_shape), dim=-1), support.y)

    def head_loss(self, support: Batch, query: Batch) -> TaskOutput:
        descriptors_QMD = F.normalize(descriptors(query.x, self.map_shape), dim=-1)
        cosines_QMSP = torch.einsum("qmd,spd->qmsp", descriptors_QMD, support.x)
        # The nearest ones in a class are among the nearest ones in each of its images.
        nearest_QMSK = cosines_QMSP.topk(min(self.neighbours, cosines_QMSP.shape[-1])).values
        belongs_CS = F.one_hot(support.y, len(support.y)).T.bool()
        of_class_QMCSK = torch.where(belongs_CS[:, :, None], nearest_QMSK[:, :, None], -torch.inf)
        pool_QMCX = of_class_QMCSK.flatten(-2)
        nearest_QMCK = pool_QMCX.topk(min(self.neighbours, pool_QMCX.shape[-1])).values
        logits_QC = torch.where(nearest_QMCK > -torch.inf, nearest_QMCK, 0).sum((1, 3))
        logits_QC = exclude_absent(logits_QC, belongs_CS.any(1))
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)


def map_shape(backbone: Backbone) -> tuple[int, int, int]:
    """Channels, height and width of the maps that `backbone` flattens; without maps, one pixel of all features."""
    return getattr(backbone, "map_shape", (backbone.out_features, 1, 1))


def descriptors(features_BX: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Descriptors `(B, M, D)`, one for each place of the maps whose flattened values the features are."""
    return features_BX.unflatten(1, (shape[0], shape[1] * shape[2])).mT
