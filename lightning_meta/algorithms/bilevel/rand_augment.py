"""RandAugment: some operations on each image, picked at random; the yardstick of learned augmentation.

Cubuk, Zoph, Shlens, Le: "RandAugment: Practical automated data augmentation with a reduced search space" (2020),
arXiv:1909.13719.

With `per_image: 0` it is training without augmentation. With `ranges` that are those of the test images, and as many
operations per image, it is what methods that learn an augmentation could at best come to.

Deviations: the eight operations of `core.augment`, each picked at most once for an image and applied in their own
order. Their strength is uniform within its range, which `magnitude` sets; in the paper all images get the largest.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.core.augment import LARGEST, augment_within, check_ranges
from lightning_meta.core.dice import subkey, uniform
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule


class RandAugment(BilevelModule):
    """An inner training on augmented images, whose outer variables are none.

    Args:
        backbone, n_classes: of `BilevelModule`.
        per_image: operations on an image, N of the paper.
        magnitude: part of its range that an operation may have, M of the paper.
        ranges: how strong each operation may be, by its name. None: all of `core.augment`.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        per_image: int = 2,
        magnitude: float = 0.3,
        ranges: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.ranges = dict(LARGEST if ranges is None else ranges)
        check_ranges("ranges", self.ranges)
        if not 0 <= per_image <= len(self.ranges) or not 0 <= magnitude <= 1:
            raise ConfigError(
                f"per_image={per_image} must be between 0 and the {len(self.ranges)} operations of ranges, and "
                f"magnitude={magnitude} a part of their ranges, between 0 and 1."
            )
        self.per_image, self.magnitude = per_image, magnitude

    def augmented(self, x: Tensor) -> Tensor:
        if self.per_image == 0:
            return x
        which, how = subkey(self.key, torch.arange(2, device=x.device))
        picked_BK = uniform(which, len(x), len(self.ranges)).argsort(1).argsort(1) < self.per_image
        largest_BK = picked_BK * self.magnitude * x.new_tensor(list(self.ranges.values()))
        return augment_within(x, dict(zip(self.ranges, largest_BK.unbind(1), strict=True)), how)

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        return self.losses(weights, Batch(self.augmented(batch.x), batch.y)).mean()
