"""Learned weight decay: a hyper-parameter for each pixel, found by the gradient of the held-out loss.

Lorraine, Vicol, Duvenaud: "Optimizing Millions of Hyperparameters by Implicit Differentiation" (2020),
arXiv:1911.02590. With `hypergradient: Unrolled` it is Franceschi, Frasconi, Salzo, Grazzi, Pontil: "Bilevel Programming
for Hyperparameter Optimization and Meta-Learning" (2018), arXiv:1806.04910.

The inner loss is cross-entropy and `sum_i exp(log_decay_i) / 2 * weight_i^2`; the outer variables are `log_decay`.

Deviations: biases and scales (whatever has one dimension) are not decayed.
"""

from math import log
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule

Per = Literal["weight", "input", "layer", "network"]
WHOLE = "network"  # the name of the decay that all layers share


class Hyperparameters(BilevelModule):
    """The weight decay of an inner training, learned on held-out examples.

    Args:
        backbone, n_classes: of `BilevelModule`. An `MLP` without hidden layers makes it logistic regression.
        per: what has a decay of its own: each `weight`; each `input` of a layer (a pixel, for the first), whatever the
            unit that it goes to; each `layer`; or none, and the `network` has one.
        decay: all begin with.
        learn: false keeps it, to compare with.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        per: Per = "input",
        decay: float = 1e-3,
        learn: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if per not in get_args(Per) or not decay > 0:
            raise ConfigError(f"per={per!r} must be one of {', '.join(get_args(Per))}, and decay={decay} positive.")
        self.per = per
        decayed = {name: p for name, p in self.network.named_parameters() if p.ndim > 1}
        shapes = {module_key(name): self._shape(p) for name, p in decayed.items()}
        if per == "network":
            shapes = {WHOLE: ()}
        self.log_decay = nn.ParameterDict(
            {name: nn.Parameter(torch.full(shape, log(decay)), requires_grad=learn) for name, shape in shapes.items()}
        )

    def _shape(self, weight: Tensor) -> tuple[int, ...]:
        """That of the decays of a layer, to be broadcast over its weights."""
        if self.per == "weight":
            return tuple(weight.shape)
        return (1, *weight.shape[1:]) if self.per == "input" else (1,) * weight.ndim

    def decay_of(self, name: str) -> Tensor:
        """The decays of a layer's weights, by the name of these."""
        return self.log_decay[WHOLE if self.per == "network" else module_key(name)].exp()

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        decayed = {name: value for name, value in weights.items() if value.ndim > 1}
        penalties = [(self.decay_of(name) * value.square()).sum() for name, value in decayed.items()]
        return self.losses(weights, batch).mean() + 0.5 * torch.stack(penalties).sum()

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        """The geometric mean of the decays."""
        return {"decay": torch.cat([p.flatten() for p in self.log_decay.values()]).mean().exp()}
