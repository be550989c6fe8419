"""The four-block convolutional network of few-shot learning (Vinyals et al. 2016, arXiv:1606.04080)."""

from math import prod
from typing import Literal

from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone, fastest_layout
from lightning_meta.backbones.norm import EpisodicBatchNorm2d, NormProtocol


class Conv4(Backbone):
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and halving of the resolution.

    Args:
        in_channels: 1 for Omniglot and glyphs, 3 for colour.
        image_size: height and width in pixels; 28, 32 and 84 are the usual ones.
        hidden: filters per block. 64, but MAML's mini-ImageNet network has 32.
        downsample: `max` pools 2x2 after the ReLU (Prototypical Networks, MAML on mini-ImageNet); `stride` convolves
            with stride 2 (MAML on Omniglot), about four times fewer operations.
        halvings: how many blocks, the first ones, halve the resolution; Relation Networks compare larger maps and have
            2. Features are maps of the shape `map_shape`, flattened.
        norm: whose statistics normalise, see `EpisodicBatchNorm2d`. None: no normalisation.
        readout: `flatten` makes features of the whole last map (256 of a strided 28x28 image: Reptile, iMAML), `mean`
            averages it over its places (64). None: `flatten` with `max`, `mean` with `stride`, as in the papers above.

    The convolutions have no bias where normalisation would cancel it.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        downsample: Literal["max", "stride"] = "max",
        norm: NormProtocol | None = "transductive",
        halvings: int = 4,
        readout: Literal["flatten", "mean"] | None = None,
    ) -> None:
        super().__init__()
        strided = downsample == "stride"
        blocks: list[nn.Module] = []
        size = image_size
        for block, channels in enumerate((in_channels, hidden, hidden, hidden)):
            halves = block < halvings
            conv = nn.Conv2d(channels, hidden, 3, stride=2 if strided and halves else 1, padding=1, bias=norm is None)
            nn.init.xavier_uniform_(conv.weight)
            normalise = EpisodicBatchNorm2d(hidden, norm) if norm else nn.Identity()
            pool = [nn.MaxPool2d(2)] if halves and not strided else []
            blocks.append(nn.Sequential(conv, normalise, nn.ReLU(), *pool))
            if halves:
                size = (size + 1) // 2 if strided else size // 2
        if size < 1:
            raise ValueError(
                f"image_size={image_size} is too small for {halvings} halvings; at least {2**halvings} is needed."
            )
        self.blocks = nn.Sequential(*blocks)
        averaged = (readout or ("mean" if strided else "flatten")) == "mean"
        self.pool = nn.AdaptiveAvgPool2d(1) if averaged else nn.Identity()
        self.in_shape = (in_channels, image_size, image_size)
        self.map_shape = (hidden, 1, 1) if averaged else (hidden, size, size)
        self.out_features = prod(self.map_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, image_size, image_size)` to features `(B, out_features)`."""
        return self.pool(self.blocks(fastest_layout(x))).flatten(1)
