"""DropBlock: dropout of whole squares of a feature map, whose neighbouring values would give single ones away.

Ghiasi, Lin, Le: "DropBlock: A regularization method for convolutional networks" (2018), arXiv:1810.12890.

Deviations: the drop rate is constant; the paper raises it during training, for which the layer would have to count its
calls. A block larger than the feature map shrinks to it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.errors import ConfigError


class DropBlock(nn.Module):
    """Zero random squares of each channel of `(B, C, H, W)` in training and scale up the rest; identity in evaluation.

    Every image and channel draws its own squares, and so does every task under `vmap(randomness="different")`.

    Args:
        drop_rate: expected share of values dropped, a little less where squares overlap.
        block_size: side of a square; 1 is ordinary dropout.
    """

    def __init__(self, drop_rate: float = 0.1, block_size: int = 5) -> None:
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ConfigError(f"drop_rate={drop_rate} must be at least 0 and below 1.")
        if block_size < 1:
            raise ConfigError(f"block_size={block_size} must be at least 1.")
        self.drop_rate, self.block_size = drop_rate, block_size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_rate == 0:
            return x
        height, width = x.shape[-2:]
        size = min(self.block_size, height, width)
        rows, columns = height - size + 1, width - size + 1  # of top left corners whose square fits in the map
        gamma = self.drop_rate * height * width / (size**2 * rows * columns)
        # Drawn and averaged in float32: half precision is too coarse for a small gamma.
        corners = (torch.rand(*x.shape[:-2], rows, columns, device=x.device) < gamma).float()
        margin = size - 1
        dropped = F.max_pool2d(F.pad(corners, (margin, margin, margin, margin)), size, stride=1)
        kept = 1 - dropped
        share_kept = kept.mean().clamp(min=1 / kept.numel())  # never 0/0, even when everything is dropped
        return x * (kept / share_kept).to(x.dtype)

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate}, block_size={self.block_size}"
