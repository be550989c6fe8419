"""Prototypical detection: a heat map of centres for each class, from cosines with the class's mean feature.

The prototypes are those of Snell, Swersky, Zemel: "Prototypical Networks for Few-shot Learning" (2017),
arXiv:1703.05175; the heat map, its loss and the reading of its peaks are those of Zhou, Wang, Krähenbühl: "Objects as
Points" (2019), arXiv:1904.07850.

Deviations: neither paper does this; a class's box has the mean size of its support boxes, where the second paper learns
to predict it, and a centre is that of a place of the map.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors
from lightning_meta.algorithms.compare.proto_segmentation import shape_of_places
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.metrics import EpisodicAveragePrecision, EpisodicMetric
from lightning_meta.modules import EmbeddingModule


class Detector(NamedTuple):
    """Mean features `(C, D)` of class slots, which of them there are `(C,)`, and heights and widths `(C, 2)`."""

    means: Tensor
    present: Tensor
    sizes: Tensor


class ProtoDetection(EmbeddingModule[Detector]):
    """A place is the centre of an object by the sigmoid of a scaled cosine with the class's mean feature, less a bound.

    Shapes: `O` objects of a scene, `P` places of a map, `M` detections; class slots `C` are the support images, an
    upper bound. Targets are boxes `(B, O, 5)`: label, top, left, bottom, right; a label of -1 is no object.

    Args:
        backbone: with maps, flattened, of the shape `backbone.map_shape` (see `Conv4`).
        image_size: height and width of the images. None: of the backbone's.
        detections: the best so many of an image are predicted.
        metric: Default: average precision at an overlap of one half.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_size: int | None = None,
        detections: int = 10,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        require_at_least(1, detections=detections)
        self.measure_by(metric or EpisodicAveragePrecision())
        self.map_shape, self.detections = shape_of_places(self.backbone), detections
        size = image_size or self.backbone.in_shape[-1]
        self.stride = (size / self.map_shape[1], size / self.map_shape[2])
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bound = nn.Parameter(torch.tensor(0.7))

    def adapt_head(self, support: Batch) -> Detector:
        maps_SPD, boxes_SO4, labels_SO = descriptors(support.x, self.map_shape), support.y[..., 1:], support.y[..., 0]
        shares_SOP = self.shares(boxes_SO4)
        features_SOD = shares_SOP @ maps_SPD / shares_SOP.sum(-1, keepdim=True).clamp_min(1e-6)
        slots_C = torch.arange(len(maps_SPD), device=labels_SO.device)
        is_XC = (labels_SO.flatten()[:, None] == slots_C).to(maps_SPD.dtype)
        counts_C = is_XC.sum(0)
        sizes_X2 = (boxes_SO4[..., 2:] - boxes_SO4[..., :2]).flatten(0, 1)
        means_CD, sizes_C2 = (
            is_XC.T @ of / counts_C.clamp_min(1)[:, None] for of in (features_SOD.flatten(0, 1), sizes_X2)
        )
        return Detector(means_CD, counts_C > 0, sizes_C2)

    def head_loss(self, detector: Detector, query: Batch) -> TaskOutput:
        maps_QPD = F.normalize(descriptors(query.x, self.map_shape), dim=-1)
        cosines_QPC = maps_QPD @ F.normalize(detector.means, dim=-1).mT
        logits_QPC = self.log_scale.exp() * (cosines_QPC - self.bound)
        heat_QPC = self.target_heat(query.y, len(detector.means))
        return TaskOutput(
            focal_loss(logits_QPC, heat_QPC, detector.present),
            self.peaks(exclude_absent(logits_QPC, detector.present).sigmoid(), detector.sizes),
        )

    def shares(self, boxes_BO4: Tensor) -> Tensor:
        """The area of each place that lies in each box, `(B, O, P)` in pixels."""
        sides = []
        for axis in range(2):
            size, stride = self.map_shape[1 + axis], self.stride[axis]
            edges = torch.arange(size + 1, device=boxes_BO4.device) * stride
            low, high = boxes_BO4[..., axis, None], boxes_BO4[..., 2 + axis, None]
            sides.append((torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp_min(0))
        return (sides[0][..., None] * sides[1][..., None, :]).flatten(-2)

    def target_heat(self, objects_BO5: Tensor, slots: int) -> Tensor:
        """1 at the place of a centre, and less around it: `(B, P, C)`, a Gaussian of a sixth of the box."""
        labels_BO, (height, width) = objects_BO5[..., 0], self.map_shape[1:]
        exponents = []
        for axis, size in enumerate((height, width)):
            low, high = objects_BO5[..., 1 + axis], objects_BO5[..., 3 + axis]
            place = ((low + high) / 2 / self.stride[axis]).floor()
            spread = ((high - low) / self.stride[axis] / 6).clamp_min(1e-3)
            distance = torch.arange(size, device=low.device) - place[..., None]
            exponents.append((distance / spread[..., None]).square() / 2)
        heat_BOP = (-(exponents[0][..., None] + exponents[1][..., None, :])).exp().flatten(-2)
        is_BOC = (labels_BO[..., None] == torch.arange(slots, device=labels_BO.device)).to(heat_BOP.dtype)
        return (heat_BOP[..., None] * is_BOC[..., None, :]).amax(1)

    def peaks(self, heat_QPC: Tensor, sizes_C2: Tensor) -> Tensor:
        """The best detections `(Q, M, 6)`: label, score, top, left, bottom, right; the score is 0 beyond the last."""
        maps = heat_QPC.detach().mT.unflatten(-1, self.map_shape[1:])
        at_peak = F.max_pool2d(maps, 3, 1, 1) == maps
        scores, order_QM = torch.where(at_peak, maps, 0).flatten(1).topk(min(self.detections, maps[0].numel()))
        places = self.map_shape[1] * self.map_shape[2]
        labels, place = order_QM // places, order_QM % places
        rows, columns = place // self.map_shape[2] + 0.5, place % self.map_shape[2] + 0.5
        centres = torch.stack([rows * self.stride[0], columns * self.stride[1]], -1)
        half = sizes_C2[labels] / 2
        return torch.cat([labels[..., None].to(scores), scores[..., None], centres - half, centres + half], -1)

    def unknown_targets(self, x: Tensor, outputs: int) -> Tensor:
        return x.new_full((x.shape[0], 1, 5), -1.0)

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        query = datamodule.dataset(split)[0].query
        if query.y.dim() != 3 or query.y.shape[-1] != 5 or not query.y.is_floating_point():
            raise ConfigError(
                f"{type(self).__name__} learns boxes {(len(query.x), 'objects', 5)}, but the targets of "
                f"{datamodule.name} are {tuple(query.y.shape)}; take Scenes with targets: boxes."
            )
        super().check_input(datamodule, split)


def focal_loss(logits_BPC: Tensor, heat_BPC: Tensor, present_C: Tensor) -> Tensor:
    """Equation 1 of "Objects as Points", with its alpha = 2 and beta = 4: per object, of the slots that are present."""
    p = logits_BPC.sigmoid()
    centre = heat_BPC >= 1
    of_centres = -(1 - p).square() * F.logsigmoid(logits_BPC)
    of_others = -((1 - heat_BPC) ** 4) * p.square() * F.logsigmoid(-logits_BPC)
    losses = torch.where(centre, of_centres, of_others) * present_C
    return losses.sum() / centre.sum().clamp_min(1)
