"""Prototypical segmentation (PANet): each pixel belongs to the class whose mean feature is nearest.

Wang, Liew, Zou, Zhou, Feng: "PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment" (2019),
arXiv:1908.06391.

The mean features are those under the masks of the support images; the background has one too. In training, the masks
found for the queries teach in turn: the mean features under them are to segment the support images.

Deviations: the alignment takes all classes of an episode at once, where the authors' code takes one class and one image
at a time. The backbone is any with maps, trained from the start; theirs is VGG-16, pre-trained on ImageNet.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors, map_shape
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicIoU, EpisodicMetric
from lightning_meta.modules import EmbeddingModule


class Segmenter(NamedTuple):
    """Mean features `(C, D)` of class slots, which of them there are `(C,)`, and the support set to align with."""

    means: Tensor
    present: Tensor
    support: Batch


class ProtoSegmentation(EmbeddingModule[Segmenter]):
    """Logits of a pixel are scaled cosines with mean features, between the places of the map by interpolation.

    Shapes: `P` places of a map; class slots `C`: the background and one for each support image, an upper bound. Targets
    are masks `(B, H, W)` int64: 0 is the background, 1 + n the class n.

    Args:
        backbone: with maps, flattened, of the shape `backbone.map_shape` (see `Conv4`).
        scale: of the cosines (the paper's alpha).
        align_weight: of the alignment, in training (the paper's lambda).
        metric: Default: mean intersection over union of the classes, without the background.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        scale: float = 20.0,
        align_weight: float = 1.0,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if scale <= 0 or align_weight < 0:
            raise ConfigError(f"scale={scale} must be positive and align_weight={align_weight} not negative.")
        self.measure_by(metric or EpisodicIoU())
        self.map_shape = shape_of_places(self.backbone)
        self.scale, self.align_weight = scale, align_weight

    def adapt_head(self, support: Batch) -> Segmenter:
        maps_SPD = descriptors(support.x, self.map_shape)
        slots = len(maps_SPD) + 1
        means_CD, present_C = masked_means(maps_SPD, areas(support.y, slots, self.map_shape))
        return Segmenter(means_CD, present_C, Batch(maps_SPD, support.y))

    def head_loss(self, segmenter: Segmenter, query: Batch) -> TaskOutput:
        maps_QPD = descriptors(query.x, self.map_shape)
        coarse_QPC = self.scores(maps_QPD, segmenter.means)
        logits_QHWC = exclude_absent(self.of_pixels(coarse_QPC, query.y), segmenter.present)
        loss = F.cross_entropy(logits_QHWC.flatten(0, 2), query.y.flatten())
        if not self.training or not self.align_weight:
            return TaskOutput(loss, logits_QHWC)
        found_QP = exclude_absent(coarse_QPC, segmenter.present).argmax(-1)
        found_QPC = (found_QP[..., None] == torch.arange(len(segmenter.means), device=found_QP.device)).to(loss.dtype)
        aligned = self.alignment(*masked_means(maps_QPD, found_QPC), segmenter.support)
        return TaskOutput(loss + self.align_weight * aligned, logits_QHWC, {"alignment": aligned.detach()})

    def scores(self, maps_BPD: Tensor, means_CD: Tensor) -> Tensor:
        """Scaled cosines `(B, P, C)`."""
        return self.scale * F.normalize(maps_BPD, dim=-1) @ F.normalize(means_CD, dim=-1).mT

    def of_pixels(self, coarse_BPC: Tensor, masks_BHW: Tensor) -> Tensor:
        """Scores `(B, H, W, C)` of pixels, between those of places."""
        maps = coarse_BPC.mT.unflatten(-1, self.map_shape[1:])
        return F.interpolate(maps, masks_BHW.shape[-2:], mode="bilinear").movedim(1, -1)

    def alignment(self, means_CD: Tensor, present_C: Tensor, support: Batch) -> Tensor:
        """Cross-entropy of the support masks, by mean features of queries; of pixels whose class was found there."""
        logits = exclude_absent(self.of_pixels(self.scores(support.x, means_CD), support.y), present_C)
        counts = present_C[support.y].to(logits.dtype)
        losses = F.cross_entropy(
            logits.flatten(0, 2),
            torch.where(counts > 0, support.y, present_C.int().argmax()).flatten(),
            reduction="none",
        )
        return (losses * counts.flatten()).sum() / counts.sum().clamp_min(1)

    def unknown_targets(self, x: Tensor, outputs: int) -> Tensor:
        return torch.zeros_like(x[:, 0], dtype=torch.long)

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        query = datamodule.dataset(split)[0].query
        if query.y.shape != (len(query.x), *query.x.shape[2:]) or query.y.is_floating_point():
            raise ConfigError(
                f"{type(self).__name__} learns masks {(len(query.x), *query.x.shape[2:])} of whole numbers, but the "
                f"targets of {datamodule.name} are {tuple(query.y.shape)}; take data with masks, such as Scenes."
            )
        super().check_input(datamodule, split)  # of another size may be what is of another kind


def shape_of_places(backbone: Backbone) -> tuple[int, int, int]:
    """Channels, height and width of a backbone's maps. Raises `ConfigError` where they have one place."""
    shape = map_shape(backbone)
    if shape[1] * shape[2] < 2:
        raise ConfigError(
            f"objects are looked for at the places of a map, but the maps of {type(backbone).__name__} have one place; "
            "take larger maps, such as Conv4 with halvings=2."
        )
    return shape


def areas(masks_BHW: Tensor, slots: int, map_shape: tuple[int, int, int]) -> Tensor:
    """Which part of each place belongs to each class slot `(B, P, C)`."""
    slots_C11 = torch.arange(slots, device=masks_BHW.device)[:, None, None]
    return F.adaptive_avg_pool2d((masks_BHW[:, None] == slots_C11).float(), map_shape[1:]).flatten(2).mT


def masked_means(maps_BPD: Tensor, areas_BPC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features `(C, D)`: under the masks of an image, then of the images that have the class; and which there are.

    Equation 1 of the paper.
    """
    areas_BPC = areas_BPC.to(maps_BPD.dtype)
    sizes_BC = areas_BPC.sum(1)
    of_images_BCD = areas_BPC.mT @ maps_BPD / torch.where(sizes_BC > 0, sizes_BC, 1)[..., None]
    has_BC = (sizes_BC > 0).to(maps_BPD.dtype)
    counts_C = has_BC.sum(0)
    return of_images_BCD.sum(0) / counts_C.clamp_min(1)[:, None], counts_C > 0
