"""ResNet-12, the residual network of few-shot learning.

Oreshkin, Rodriguez, Lacoste: "TADAM: Task dependent adaptive metric for improved few-shot learning" (2018),
arXiv:1805.10123; with the widths, leaky ReLU and DropBlock of Lee, Maji, Ravichandran, Soatto: "Meta-Learning with
Differentiable Convex Optimization" (MetaOptNet, 2019), arXiv:1904.03758.

Deviations: the drop rate is constant, see `dropblock.py`. By default the last feature map is averaged; MetaOptNet
flattens it (`global_pool=False`).
"""

from math import prod

from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.dropblock import DropBlock
from lightning_meta.backbones.norm import EpisodicBatchNorm2d, NormProtocol
from lightning_meta.errors import ConfigError

SLOPE = 0.1  # of the leaky ReLU below zero


class ResNet12(Backbone):
    """Four residual blocks of three 3x3 convolutions, each of which halves the resolution.

    Args:
        in_channels: 1 for Omniglot and glyphs, 3 for colour.
        image_size: height and width in pixels; 32 and 84 are the usual ones.
        channels: filters of each block. (64, 160, 320, 640) is MetaOptNet's, 12.4 million parameters;
            (64, 128, 256, 512) is the narrower one in use, 8.0 million.
        global_pool: average the last feature map; MetaOptNet flattens it, to maps of the shape `map_shape`.
        drop_rate: of DropBlock after each block, in training. It also acts on the inner loop; 0 turns it off.
        block_size: of DropBlock in the last two blocks; in the first two it is 1. MetaOptNet has 5 for 84x84 and 2 for
            32x32 images.
        norm: whose statistics normalise, see `EpisodicBatchNorm2d`.

    The convolutions have no bias: normalisation would cancel it. Their weights start as Kaiming's (normal, fan out).
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        channels: tuple[int, int, int, int] = (64, 160, 320, 640),
        global_pool: bool = True,
        drop_rate: float = 0.1,
        block_size: int = 5,
        norm: NormProtocol = "transductive",
    ) -> None:
        super().__init__()
        if image_size < 16:
            raise ConfigError(f"image_size={image_size} is too small for four halvings; at least 16 is needed.")
        inputs = (in_channels, *channels[:-1])
        drop_blocks = [DropBlock(drop_rate, size) for size in (1, 1, block_size, block_size)]
        self.blocks = nn.Sequential(
            *(ResidualBlock(a, b, norm, drop) for a, b, drop in zip(inputs, channels, drop_blocks, strict=True))
        )
        self.pool = nn.AdaptiveAvgPool2d(1) if global_pool else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out")
        self.in_shape = (in_channels, image_size, image_size)
        side = 1 if global_pool else image_size // 16
        self.map_shape = (channels[-1], side, side)
        self.out_features = prod(self.map_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, image_size, image_size)` to features `(B, out_features)`."""
        return self.pool(self.blocks(x)).flatten(1)


class ResidualBlock(nn.Module):
    """Three convolutions beside a 1x1 convolution; the sum is rectified, halved in resolution, and partly dropped."""

    def __init__(self, in_channels: int, channels: int, norm: NormProtocol, drop: DropBlock) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            EpisodicBatchNorm2d(channels, norm),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            EpisodicBatchNorm2d(channels, norm),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            EpisodicBatchNorm2d(channels, norm),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False), EpisodicBatchNorm2d(channels, norm)
        )
        self.out = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2), drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.residual(x) + self.shortcut(x))
