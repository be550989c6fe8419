"""The convolutional network of R2-D2, whose features are the maps of its last two layers, side by side.

Bertinetto, Henriques, Torr, Vedaldi: "Meta-learning with differentiable closed-form solvers" (2019), arXiv:1805.08136.

Deviations: none.
"""

import torch
from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.norm import EpisodicBatchNorm2d, NormProtocol
from lightning_meta.errors import ConfigError

SLOPE = 0.1  # of the leaky ReLU below zero


class R2D2Net(Backbone):
    """Four blocks of 3x3 convolution, normalisation, max-pooling and leaky ReLU; the last two drop values in training.

    The first three halve the resolution. The fourth, and the map of the third where it becomes features, are pooled
    with stride 1, which takes off one row and one column.

    Args:
        in_channels: 1 for Omniglot and glyphs, 3 for colour.
        image_size: height and width in pixels; 28, 32 and 84 are the usual ones.
        channels: filters of each block. (96, 192, 384, 512) is the paper's network, (64, 64, 64, 64) that of its rows
            for comparison with other methods.
        dropout: rate after the last two blocks; in the paper 0 for Omniglot, 0.1 for mini-ImageNet, 0.4 for CIFAR-FS.
            It also acts on the inner loop.
        norm: whose statistics normalise, see `EpisodicBatchNorm2d`.

    The convolutions have no bias: normalisation would cancel it.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        channels: tuple[int, int, int, int] = (96, 192, 384, 512),
        dropout: float = 0.1,
        norm: NormProtocol = "transductive",
    ) -> None:
        super().__init__()
        if image_size < 16:
            raise ConfigError(f"image_size={image_size} is too small for three halvings; at least 16 is needed.")
        inputs = (in_channels, *channels[:-1])
        blocks = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1, bias=False),
                EpisodicBatchNorm2d(b, norm),
                nn.MaxPool2d(2, stride),
                nn.LeakyReLU(SLOPE),
                nn.Dropout(rate),
            )
            for a, b, stride, rate in zip(inputs, channels, (2, 2, 2, 1), (0.0, 0.0, dropout, dropout), strict=True)
        ]
        self.halving, self.last = nn.Sequential(*blocks[:3]), blocks[3]
        self.pool = nn.MaxPool2d(2, 1)
        self.in_shape = (in_channels, image_size, image_size)
        self.out_features = (channels[2] + channels[3]) * (image_size // 8 - 1) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, image_size, image_size)` to features `(B, out_features)`."""
        third = self.halving(x)
        return torch.cat([self.pool(third).flatten(1), self.last(third).flatten(1)], dim=1)
