"""T-Nets: learn a metric of each layer's activations, in which the inner loop's gradient descent takes place.

Lee, Choi: "Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace" (2018), arXiv:1801.05558.
Warped gradient descent (Flennerhag et al. 2020, arXiv:1909.00025) puts whole layers in the place of the matrices.

Behind each linear layer and convolution W stands a matrix T, which a task's inner loop leaves alone: `T W x`. A step on
W is then one on `T W` along its gradient, multiplied by `T T'`. All T start as the identity, so training starts from
MAML.

In an MT-net a task moves only some of the rows of each W, those of a binary mask that is drawn for it. How probable
they are is learned, through a relaxation of the draw (Gumbel-softmax, Jang et al. 2017, arXiv:1611.01144).

Deviations: those of MAML. Nothing is drawn in evaluation: there a row's gradient is multiplied by its probability.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, unroll
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.errors import ConfigError
from lightning_meta.modules.learned_rates import inner_optimizer_for


class TNet(MAML):
    """MAML with a meta-learned matrix behind each layer, which the inner loop does not move.

    Args:
        masks: an MT-net: which units of these layers a task moves is drawn, at first with even odds.
        mask_temperature: of the relaxation, through which the odds are learned.
        **kwargs: of `MAML`, as those before them.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.4,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        masks: bool = False,
        mask_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if mask_temperature <= 0:
            raise ConfigError(f"mask_temperature={mask_temperature} must be positive.")
        # A copy: layers are replaced, and the backbone of the caller stays as it is.
        super().__init__(deepcopy(backbone), n_way, inner_lr, **kwargs)
        for parent in list(self.learner.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    setattr(parent, name, InMetric(layer))
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)
        self.mask_temperature = mask_temperature
        layers = {name: layer for name, layer in self.learner.named_modules() if isinstance(layer, InMetric)}
        odds = {module_key(name): nn.Parameter(torch.zeros(len(layer.metric))) for name, layer in layers.items()}
        self.mask_odds = nn.ParameterDict(odds if masks else {})

    def theta(self) -> Params:
        return {name: value for name, value in super().theta().items() if not name.endswith(".metric")}

    def adapt(self, support: Batch) -> Params:
        if not self.mask_odds:
            return super().adapt(support)
        theta, masks = self.theta(), {name: self.mask(odds) for name, odds in self.mask_odds.items()}
        of_units = {name: masks[module_key(name.rpartition(".layer.")[0])] for name in theta if ".layer." in name}
        rule = Masked(self.inner_optimizer, of_units)
        phi = unroll(lambda params: self.loss(params, support), theta, rule, self.steps, self.first_order)
        return phi | support_statistics(self.learner, phi, support.x)

    def mask(self, odds_C: Tensor) -> Tensor:
        """Of the units of a layer, from their logarithmic odds: ones and zeros, whose gradient is the relaxation's."""
        if not self.training:
            return odds_C.sigmoid()
        tiny = torch.finfo(odds_C.dtype).eps
        drawn_C = torch.rand_like(odds_C).clamp(tiny, 1 - tiny)
        # The difference of two Gumbel variates is a logistic one, and the softmax of two classes a sigmoid.
        soft_C = ((odds_C + drawn_C.logit()) / self.mask_temperature).sigmoid()
        return (soft_C > 0.5).to(soft_C.dtype) + soft_C - soft_C.detach()


@dataclass(frozen=True)
class Masked:
    """An inner optimizer that is given gradients under masks, one for the units of each parameter that has one."""

    rule: InnerOptimizer
    masks: Params

    def init(self, params: Params) -> Any:
        return self.rule.init(params)

    def update(self, grads: Params, state: Any, params: Params, loss: Tensor) -> tuple[Params, Any]:
        masked = {name: mask.view(-1, *(1 for _ in grads[name].shape[1:])) for name, mask in self.masks.items()}
        return self.rule.update(grads | {name: grads[name] * masked[name] for name in masked}, state, params, loss)


class InMetric(nn.Module):
    """A layer, and after it a matrix that mixes its output channels, `(B, C, ...)`; at first the identity."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.metric = layer, nn.Parameter(torch.eye(len(layer.weight)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("dc,bc...->bd...", self.metric, self.layer(x))
