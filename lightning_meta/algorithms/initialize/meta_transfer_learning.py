"""Meta-transfer learning: kernels that were learned elsewhere are scaled and shifted, and a head adapts to each task.

Sun, Liu, Chua, Schiele: "Meta-Transfer Learning for Few-Shot Learning" (2019), arXiv:1812.02391.

The kernels of the backbone stay as they come; what is meta-learned are a factor for each of them, which joins an input
channel to an output channel, a shift of each bias, scale and shift of normalisation, and where the head starts. As in
the authors' code, layers without a bias have no shift.

Deviations: those of MAML. Meta-batches of the classes on which the learner fails (hard tasks) are left out. Kernels are
learned beforehand only if the backbone that is passed has learned: from a config it starts from random ones.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.algorithms.initialize.anil import ANIL
from lightning_meta.backbones import Backbone


class MTL(ANIL):
    """ANIL whose backbone learns factors and shifts of fixed weights.

    Args:
        backbone: feature extractor, best one that is trained to tell many classes apart. It is copied.
        n_way: of `MAML`.
        **kwargs: of `MAML`.
    """

    def __init__(self, backbone: Backbone, n_way: int | None = None, **kwargs: Any) -> None:
        super().__init__(deepcopy(backbone), n_way, **kwargs)
        for parent in list(self.backbone.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    setattr(parent, name, ScaledAndShifted(layer))


class ScaledAndShifted(nn.Module):
    """A layer with fixed weights, each kernel times a learned factor, and a learned shift beside a bias.

    A kernel joins an input channel to an output channel of a convolution; of a linear layer it is all weights of an
    output.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        kernels = layer.weight.shape[: 2 if isinstance(layer, nn.Conv2d) else 1]
        self.scale = nn.Parameter(torch.ones(*kernels, *(1 for _ in layer.weight.shape[len(kernels) :])))
        self.shift = None if layer.bias is None else nn.Parameter(torch.zeros_like(layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        weights = {"weight": self.layer.weight * self.scale}
        if self.layer.bias is not None and self.shift is not None:
            weights["bias"] = self.layer.bias + self.shift
        return functional_call(self.layer, weights, (x,))
