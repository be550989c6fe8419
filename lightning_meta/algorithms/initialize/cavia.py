"""CAVIA: adapt a small context vector, an input of the network, and leave the weights as they are for all tasks.

Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson: "Fast Context Adaptation via Meta-Learning" (2019), arXiv:1810.03642.

The context enters one layer. Beside the input of a linear layer, as in the paper's regression, it comes to a shift of
the layer's output, one linear function of the context for each unit. In a convolutional network it also scales the
channels (FiLM, Perez et al. 2018, arXiv:1709.07871) before the rectifier.

Deviations: those of MAML. The weights of the context are drawn by themselves, as those of a layer with no other input.
In the authors' code FiLM follows the pooling, here the normalisation.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.core import SGD, InnerOptimizer, Params
from lightning_meta.errors import ConfigError
from lightning_meta.modules.learned_rates import inner_optimizer_for


class CAVIA(MAML):
    """MAML whose inner loop moves a context vector alone, from zeros. All weights are meta-learned.

    Args:
        backbone: feature extractor.
        n_way: of `MAML`.
        context: size of the context vector.
        layer: whose output the context changes: the name of a linear, convolution or normalisation layer of the
            backbone, such as `layers.0` of an `MLP` or `blocks.2.1`, the third normalisation, of a `Conv4`.
        effect: `film` scales and shifts its channels, `shift` only shifts.
        inner_lr: step size of the inner loop (alpha).
        inner_optimizer: of `MAML`.
        **kwargs: of `MAML`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        context: int = 100,
        layer: str = "blocks.2.1",
        effect: Literal["film", "shift"] = "film",
        inner_lr: float = 1.0,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        # A copy: one of its layers is replaced, and the backbone of the caller stays as it is.
        super().__init__(deepcopy(backbone), n_way, inner_lr, **kwargs)
        named = self.backbone.named_parameters()
        weights = {name.removesuffix(".weight"): weight for name, weight in named if name.endswith(".weight")}
        if layer not in weights:
            raise ConfigError(
                f"layer={layer} is no layer with a weight of {type(backbone).__name__}, which has {', '.join(weights)}."
            )
        parent, _, name = layer.rpartition(".")
        in_context = InContext(self.backbone.get_submodule(layer), len(weights[layer]), context, effect)
        setattr(self.backbone.get_submodule(parent), name, in_context)
        self.place = f"0.{layer}.context"
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)

    def theta(self) -> Params:
        return {self.place: self.learner.get_buffer(self.place)}


class InContext(nn.Module):
    """A layer, and after it a shift (and a scale) of its output channels, linear functions of `context`: zeros.

    Other values come with a call, by `functional_call`.
    """

    context: Tensor

    def __init__(self, layer: nn.Module, channels: int, size: int, effect: Literal["film", "shift"]) -> None:
        super().__init__()
        self.layer, self.effect = layer, effect
        self.register_buffer("context", torch.zeros(size), persistent=False)
        # A shift that does not depend on the context is the layer's own bias.
        self.modulate = nn.Linear(size, channels, bias=False) if effect == "shift" else nn.Linear(size, 2 * channels)
        if effect == "film":  # as in the authors' code; scales start near 0, where a small context changes much
            nn.init.kaiming_uniform_(self.modulate.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        """As the layer: its output `(B, channels, ...)`."""
        out = self.layer(x)
        values = self.modulate(self.context)
        values = values.view(-1, *(1 for _ in out.shape[2:]))
        if self.effect == "shift":
            return out + values
        scale, shift = values.chunk(2)
        return out * scale + shift
