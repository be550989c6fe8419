"""LoRA: large weights stay as they are, and what is learned is a product of two thin matrices that is added to each.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: "LoRA: Low-Rank Adaptation of Large Language Models" (2021),
arXiv:2106.09685.

Deviations: kernels of convolutions have matrices too, as those of a linear map of all that they see; the paper adapts
some of the linear layers of Transformers. No dropout.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import sqrt
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.norm import NormProtocol
from lightning_meta.backbones.wrap import as_backbone
from lightning_meta.errors import ConfigError, require_at_least

ADAPTED: dict[type[nn.Module], str] = {
    nn.Linear: "weight",
    nn.Conv1d: "weight",
    nn.Conv2d: "weight",
    nn.MultiheadAttention: "in_proj_weight",
}
BEFORE = "parametrizations"  # what torch puts before the names of weights that are computed


class LowRank(nn.Module):
    """A weight and what is added to it: `W + alpha / rank * B A`, with `A` `(rank, inputs)` and `B` `(outputs, rank)`.

    `B` starts at 0, so that nothing is added at first.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = len(weight), weight[0].numel()
        self.a = nn.Parameter(nn.init.kaiming_uniform_(weight.new_empty(rank, inputs), a=sqrt(5)))
        self.b = nn.Parameter(weight.new_zeros(outputs, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).view_as(weight)


class LoRA(Backbone):
    """A copy of a network, frozen, with a low-rank change of each large weight as its only parameters.

    So they are all that an inner loop moves and an outer update trains, the head of the algorithm apart: MAML's
    `theta()` of a network of millions of weights has some thousands. `pretrained` weights go to the network.

    Args:
        network: any; see `Wrapped`.
        rank: of the changes.
        alpha: they are scaled by `alpha / rank`. None: as large as the rank.
        layers: names of layers, and of groups of layers, that are adapted. None: all linear layers, convolutions and
            attention.
        norm: for a network that is no `Backbone`, as in `Wrapped`.
    """

    def __init__(
        self,
        network: nn.Module,
        rank: int = 4,
        alpha: float | None = None,
        layers: Sequence[str] | None = None,
        norm: NormProtocol = "transductive",
    ) -> None:
        super().__init__()
        require_at_least(1, rank=rank)
        self.network = deepcopy(as_backbone(network, norm)).requires_grad_(False)
        self.out_features = self.network.out_features
        for fact in ("in_shape", "map_shape"):
            if hasattr(self.network, fact):
                setattr(self, fact, getattr(self.network, fact))
        self.adapted: dict[str, str] = {}  # the weights, by the names of their layers
        for name, layer in _large(self.inner, layers).items():
            weight = _weight(layer)
            change = LowRank(getattr(layer, weight), rank, rank if alpha is None else alpha)
            register_parametrization(layer, weight, change)
            self.adapted[name] = weight

    @property
    def inner(self) -> nn.Module:
        return self.network.inner

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def authors_tensors(self) -> dict[str, Tensor]:
        names = {f"{_dotted(at)}{BEFORE}.{weight}": _dotted(at) + weight for at, weight in self.adapted.items()}
        tensors: dict[str, Tensor] = {}
        for name, value in self.network.authors_tensors().items():
            of, _, last = name.rpartition(".")
            if of in names and last == "original":
                tensors[names[of]] = value
            elif of.rpartition(".")[0] not in names:
                tensors[name] = value
        return tensors

    def check_input_shape(self, shape: Sequence[int], source: str) -> None:
        self.network.check_input_shape(shape, source)

    def check_data(self, data: Any) -> None:
        self.network.check_data(data)


def _large(network: nn.Module, chosen: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers with a weight that can be adapted, by name, and among them those that were chosen."""
    found = {name: layer for name, layer in network.named_modules() if _weight(layer)}
    if chosen is not None:
        for name in chosen:
            if not any(f"{layer}.".startswith(f"{name}.") for layer in found):
                raise ConfigError(
                    f"layers has {name}, but the network has no such layer whose weight can be adapted; it has "
                    f"{', '.join(list(found)[:8])}."
                )
        found = {name: at for name, at in found.items() if any(f"{name}.".startswith(f"{c}.") for c in chosen)}
    if not found:
        raise ConfigError(
            f"{type(network).__name__} has no linear layer, convolution or attention to adapt; take the network itself."
        )
    return found


def _weight(layer: nn.Module) -> str:
    """What its large weight is called; empty where it has none, as attention whose keys have a weight of their own."""
    names = [name for kind, name in ADAPTED.items() if isinstance(layer, kind)]
    return names[0] if names and isinstance(getattr(layer, names[0]), Tensor) else ""


def _dotted(layer: str) -> str:
    return f"{layer}." if layer else ""
