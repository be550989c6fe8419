"""What an algorithm needs to know of a backbone."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """A feature extractor: maps `(B, *in_shape)` to `(B, out_features)`, right under vmap and second derivatives."""

    in_shape: tuple[int, ...]
    out_features: int

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError
