"""What an algorithm needs to know of a backbone."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from lightning_meta.errors import ConfigError


class Backbone(nn.Module):
    """A feature extractor: maps `(B, *in_shape)` to `(B, out_features)`, right under vmap and second derivatives."""

    in_shape: tuple[int, ...]
    out_features: int

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def check_input_shape(backbone: nn.Module | None, shape: Sequence[int], source: str) -> None:
    """Raise `ConfigError` unless `backbone` takes single inputs of this shape, which `source` has."""
    expected, found = getattr(backbone, "in_shape", None), tuple(shape)
    if expected is not None and expected not in (found, (prod(found),)):
        raise ConfigError(
            f"the backbone expects inputs of shape {expected}, but {source} has {found}; set the backbone's "
            "in_channels and image_size (or in_features) to match. Texts need a backbone for texts."
        )
