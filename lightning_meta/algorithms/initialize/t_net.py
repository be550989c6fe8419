"""T-Nets: learn a metric of each layer's activations, in which the inner loop's gradient descent takes place.

Lee, Choi: "Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace" (2018), arXiv:1801.05558.
Warped gradient descent (Flennerhag et al. 2020, arXiv:1909.00025) puts whole layers in the place of the matrices.

Behind each linear layer and convolution W stands a matrix T, which a task's inner loop leaves alone: `T W x`. A step on
W is then one on `T W` along its gradient, multiplied by `T T'`. All T start as the identity, so training starts from
MAML.

Deviations: those of MAML. T alone, not the MT-net's learned subspace in which W moves.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.core import SGD, InnerOptimizer, Params
from lightning_meta.modules.learned_rates import inner_optimizer_for


class TNet(MAML):
    """MAML with a meta-learned matrix behind each layer, which the inner loop does not move.

    Same arguments as `MAML`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.4,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        # A copy: layers are replaced, and the backbone of the caller stays as it is.
        super().__init__(deepcopy(backbone), n_way, inner_lr, **kwargs)
        for parent in list(self.learner.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    setattr(parent, name, InMetric(layer))
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)

    def theta(self) -> Params:
        return {name: value for name, value in super().theta().items() if not name.endswith(".metric")}


class InMetric(nn.Module):
    """A layer, and after it a matrix that mixes its output channels, `(B, C, ...)`; at first the identity."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.metric = layer, nn.Parameter(torch.eye(len(layer.weight)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("dc,bc...->bd...", self.metric, self.layer(x))
