"""Training with weights of examples that are not learned: what methods that learn them are compared with.

The controls of Ren, Zeng, Yang, Urtasun: "Learning to Reweight Examples for Robust Deep Learning" (2018),
arXiv:1803.09050. `equal` is ordinary training. `balanced` weighs an example by the inverse of how many its class has,
as it is labelled. `random` draws the positive part of normal numbers in each step. The weights of a batch are divided
by their sum.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.core.dice import normal
from lightning_meta.datamodules.bilevel.held_out_images import HeldOutImages
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule

Scheme = Literal["equal", "balanced", "random"]


class FixedWeights(BilevelModule):
    """An inner training whose outer variables are none.

    Args:
        backbone, n_classes: of `BilevelModule`.
        weights: how much an example counts: `equal`, `balanced` or `random`.
        **kwargs: of `BilevelModule`.
    """

    def __init__(self, backbone: Backbone, n_classes: int = 10, weights: Scheme = "equal", **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if weights not in ("equal", "balanced", "random"):
            raise ConfigError(f"weights={weights!r} must be equal, balanced or random.")
        self.weights = weights
        self.register_buffer("counts_C", torch.ones(n_classes))

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        losses_B = self.losses(weights, batch)
        if self.weights == "balanced":
            count_B = 1 / self.get_buffer("counts_C")[batch.y]
        elif self.weights == "random":
            count_B = normal(self.key, len(losses_B), dtype=losses_B.dtype).relu()
        else:
            count_B = torch.ones_like(losses_B)
        return (count_B * losses_B).sum() / count_B.sum().clamp_min(torch.finfo(losses_B.dtype).tiny)

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if self.weights == "balanced" and isinstance(data, HeldOutImages):
            counts_C = torch.bincount(data.given_labels, minlength=self.n_classes).clamp_min(1)
            self.get_buffer("counts_C").copy_(counts_C)
