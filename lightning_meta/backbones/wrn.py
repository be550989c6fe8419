"""Wide residual networks: few layers with many filters, activation before convolution.

Zagoruyko, Komodakis: "Wide Residual Networks" (2016), arXiv:1605.07146.

Deviations: none. The paper's small images are 32x32; larger ones pass through the same layers, with larger maps.
"""

from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.norm import EpisodicBatchNorm2d, NormProtocol
from lightning_meta.errors import ConfigError


class WideResNet(Backbone):
    """A 3x3 convolution, three groups of pre-activation blocks, the last two at half resolution each, and averaging.

    Args:
        in_channels: 1 for Omniglot and glyphs, 3 for colour.
        image_size: height and width in pixels; 28, 32 and 84 are the usual ones.
        depth: convolutions, 6 n + 4 for n blocks of two per group; the first one and three shortcuts are counted.
        width: the groups have 16, 32 and 64 times as many filters. The default is WRN-28-10.
        dropout: rate between the convolutions of a block, in training. It also acts on the inner loop.
        norm: whose statistics normalise, see `EpisodicBatchNorm2d`.

    No convolution has a bias. Their weights start as Kaiming's (normal, fan out).
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        norm: NormProtocol = "transductive",
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ConfigError(f"depth={depth} is not 6 n + 4 with n blocks per group; take 10, 16, 22, 28, 34 or 40.")
        if image_size < 4:
            raise ConfigError(f"image_size={image_size} is too small for two halvings; at least 4 is needed.")
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = 16
        for filters, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for block in range((depth - 4) // 6):
                stride = first_stride if block == 0 else 1
                blocks.append(PreActivationBlock(channels, filters, stride, dropout, norm))
                channels = filters
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Sequential(EpisodicBatchNorm2d(channels, norm), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.in_shape = (in_channels, image_size, image_size)
        self.out_features = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, image_size, image_size)` to features `(B, 64 width)`."""
        return self.out(self.blocks(self.stem(x))).flatten(1)


class PreActivationBlock(nn.Module):
    """Normalise and rectify, convolve, twice; a 1x1 convolution on the shortcut only where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float, norm: NormProtocol) -> None:
        super().__init__()
        self.activate = nn.Sequential(EpisodicBatchNorm2d(in_channels, norm), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
            EpisodicBatchNorm2d(channels, norm),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        same_shape = in_channels == channels and stride == 1
        self.project = None if same_shape else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activate(x)
        shortcut = x if self.project is None else self.project(active)
        return shortcut + self.residual(active)
