"""S2M2: pre-training that also tells by how much an image is turned, and is smooth between features (manifold mixup).

Mangla, Kumari, Sinha, Singh, Krishnamurthy, Balasubramanian: "Charting the Right Manifold: Manifold Mixup for Few-shot
Learning" (2020), arXiv:1907.12087. Its `S2M2_R`, on the cosine classifier of Baseline++.

Every image of a batch is there in all four quarter turns. The loss is the mean of two cross-entropies, of its class and
of its turn, and with `mixup` that of mixed features: of a part of one example and the rest of another, whose labels
count by the same parts.

Deviations: those of Baseline++. Both losses are trained together; the paper trains with turns first, then goes on with
mixing. Features are mixed after the last layer; the paper draws the layer, among it and those before.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.baselines.baseline_plus_plus import BaselinePlusPlus
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Episode, TaskOutput
from lightning_meta.errors import ConfigError

TURNS = 4


class S2M2(BaselinePlusPlus):
    """Baseline++ whose training has two more tasks. For square images.

    Args:
        backbone, n_classes, scale: of `BaselinePlusPlus`.
        mixup: alpha of the distribution Beta(alpha, alpha) of the part of an example; 0 mixes nothing.
        **kwargs: of `BaselinePlusPlus`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        scale: float = 10.0,
        mixup: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, scale, **kwargs)
        if mixup < 0:
            raise ConfigError(f"mixup={mixup} must not be negative; 0 mixes nothing.")
        self.mixup = mixup
        self.turns = nn.Linear(self.backbone.out_features, TURNS)

    def play(self, tasks: Episode) -> TaskOutput:
        """In training on all turns of the images. Predictions are those of the images as they are."""
        if not self.training:
            return super().play(tasks)
        out = super().play(Episode(*(Batch(in_turns(x), y.repeat(1, TURNS)) for x, y in tasks)))
        return out._replace(preds=out.preds[:, : tasks.query.y.shape[1]])

    def head_loss(self, head: Any, query: Batch) -> TaskOutput:
        out = super().head_loss(head, query)
        if not self.training:
            return out
        features_BD, labels_B = torch.cat([head.x, query.x]), torch.cat([head.y, query.y])
        turn = F.cross_entropy(self.turns(features_BD), torch.cat([turn_of_each(head.y), turn_of_each(query.y)]))
        loss = (out.loss + turn) / 2
        if self.mixup:
            loss = loss + self.mixed_loss(features_BD, labels_B)
        return out._replace(loss=loss, logs={"turn_loss": turn.detach()})

    def mixed_loss(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of mixtures of two examples each; one part is drawn for all of them."""
        part, order_B = middle_of(self.mixup, features_BD), torch.rand_like(features_BD[:, 0]).argsort()
        logits_BC = self.class_logits(part * features_BD + (1 - part) * features_BD[order_B])
        own, others = (F.cross_entropy(logits_BC, labels) for labels in (labels_B, labels_B[order_B]))
        return part * own + (1 - part) * others


def in_turns(images_TB: Tensor, turns: int = TURNS) -> Tensor:
    """Images `(T, B, C, H, H)` as they are, and turned by one quarter, two, ...: `(T, turns * B, C, H, H)`."""
    if images_TB.ndim != 5 or images_TB.shape[-1] != images_TB.shape[-2]:
        raise ConfigError(f"turning is for square images, but an input is of shape {tuple(images_TB.shape[2:])}.")
    return torch.cat([torch.rot90(images_TB, turn, (-2, -1)) for turn in range(turns)], dim=1)


def turn_of_each(labels_B: Tensor) -> Tensor:
    """By how many quarters each of the examples `(4 B,)` is turned that `in_turns` has made."""
    return torch.arange(TURNS, device=labels_B.device).repeat_interleave(len(labels_B) // TURNS)


def middle_of(alpha: int, like: Tensor) -> Tensor:
    """A draw from Beta(alpha, alpha): the middle one of `2 alpha - 1` uniform numbers."""
    return torch.rand_like(like.flatten()[: 2 * alpha - 1]).sort().values[alpha - 1]
