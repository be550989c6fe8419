"""Meta-Weight-Net: a small network that says how much an example counts, from its loss.

Shu, Xie, Yi, Zhao, Zhou, Xu, Meng: "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting" (2019),
arXiv:1902.07379.

Deviation: the weights of a batch are divided by their sum (`normalise`), as in the authors' first code; in their later
code, and in the paper, they are not. Without it a weight is also a step size: larger ones lower the held-out loss early
on, and a sigmoid that has come to 1 for all examples does not come back.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.modules.bilevel import BilevelModule


class MetaWeightNet(BilevelModule):
    """A weight for each example of an inner batch, from its loss; learned from clean held-out examples.

    Args:
        backbone, n_classes: of `BilevelModule`.
        hidden: units of the network from loss to weight.
        normalise: divide the weights of a batch by their sum; otherwise by the size of the batch.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self, backbone: Backbone, n_classes: int = 10, hidden: int = 100, normalise: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.normalise = normalise
        self.weigher = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def weights_of(self, losses_B: Tensor) -> Tensor:
        """How much examples count, in (0, 1)."""
        return self.weigher(losses_B.detach()[:, None])[:, 0]

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        losses_B = self.losses(weights, batch)
        count_B = self.weights_of(losses_B)
        return (count_B * losses_B).sum() / (count_B.sum() if self.normalise else len(losses_B))

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        count_B = self.weights_of(self.losses(weights, batch))
        return {"weight": count_B.mean(), "weight_auc": chance_of_order(count_B, right_B)}


def chance_of_order(count_B: Tensor, right_B: Tensor) -> Tensor:
    """How likely an example with a right label counts more than one with a wrong label (the area under the ROC curve).

    One half where all labels are right, or all wrong.
    """
    pairs_BB = right_B[:, None] & ~right_B[None]
    before_BB = (count_B[:, None] > count_B[None]).to(count_B.dtype) + 0.5 * (count_B[:, None] == count_B[None])
    pairs = pairs_BB.sum()
    return torch.where(pairs > 0, (before_BB * pairs_BB).sum() / pairs.clamp_min(1), 0.5)
