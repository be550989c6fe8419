"""MetaReg: a cost of each weight of the head, learned so that training on one domain generalises to another.

Balaji, Sankaranarayanan, Chellappa: "MetaReg: Towards Domain Generalization using Meta-Regularization" (2018),
NeurIPS 2018.

The inner loss is cross-entropy and `sum(costs * abs(weights))` over the head. Each inner training is on one domain, and
the costs learn from the loss on another after its steps. What is tested are new trainings, on all seen domains, under
the costs as they are then.

Deviations: costs are positive, by a softplus. A network of each domain is trained whole on it; in the paper these
networks share their features, which are trained on all domains, and differ in their heads.
"""

from math import expm1, log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule

HEAD = "head.weight"


class MetaReg(BilevelModule):
    """A weighted L1 penalty of the head, whose weights are learned across domains.

    Args:
        backbone, n_classes: of `BilevelModule`.
        start: what all costs are before training.
        **kwargs: of `BilevelModule`.
    """

    def __init__(self, backbone: Backbone, n_classes: int = 10, start: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if not start > 0:
            raise ConfigError(f"start={start} must be positive, the cost of each weight before training.")
        self.raw = nn.Parameter(torch.full_like(self.network.get_parameter(HEAD), log(expm1(start))))

    def costs(self) -> Tensor:
        """Of the head's weights, `(C, D)`."""
        return F.softplus(self.raw)

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        return self.losses(weights, batch).mean() + (self.costs() * weights[HEAD].abs()).sum()

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        return {"cost": self.costs().mean()}
