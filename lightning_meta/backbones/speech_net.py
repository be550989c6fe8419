"""A small network from the frames of a sound to what is said in each step of time.

Convolutions over time of growing dilation, as matrix products of neighbouring steps, which `vmap` batches well.
Normalisation is over the channels of a step, so that silence after a sound changes nothing before it.

Shape letters: `B` sounds, `S` frames or steps, `F` bands, `D` features, `C` symbols.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core.transformer import LayerNorm
from lightning_meta.errors import require_at_least, sizes_of_data


class Neighbours(nn.Module):
    """A residual block: each step sees itself and two others, `dilation` steps before and after it."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm, self.mix, self.out = LayerNorm(width), nn.Linear(3 * width, width), nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        padded = F.pad(self.norm(x_BSD), (0, 0, self.dilation, self.dilation))
        steps = x_BSD.shape[-2]
        seen = torch.cat([padded[..., k * self.dilation : k * self.dilation + steps, :] for k in range(3)], -1)
        return x_BSD + self.out(F.gelu(self.mix(seen)))


class SpeechNet(nn.Module):
    """Logits `(B, steps, vocabulary)` of the symbols in each step of sounds `(B, frames, bands)`.

    Args:
        vocabulary: symbols, of which 0 is the blank. On the command line it follows `data.vocabulary`.
        bands: of a frame. On the command line it follows `data.bands`.
        width: D.
        blocks: in a row, of dilations 1, 2, 4 and again.
        stride: frames of a step.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        bands: int | None = None,
        width: int = 64,
        blocks: int = 3,
        stride: int = 2,
    ) -> None:
        super().__init__()
        vocabulary, bands = sizes_of_data(
            self, vocabulary=(vocabulary, "the number of symbols with the blank"), bands=(bands, "those of a frame")
        )
        require_at_least(1, vocabulary=vocabulary, bands=bands, width=width, blocks=blocks, stride=stride)
        self.vocabulary, self.bands, self.stride = vocabulary, bands, stride
        self.enter = nn.Linear(stride * bands, width)
        self.blocks = nn.Sequential(*(Neighbours(width, 2 ** (block % 3)) for block in range(blocks)))
        self.norm, self.out = LayerNorm(width), nn.Linear(width, vocabulary)

    def steps(self, frames: int) -> int:
        """How many there are of so many frames."""
        return -(-frames // self.stride)

    def forward(self, x_BSF: Tensor) -> Tensor:
        whole = F.pad(x_BSF, (0, 0, 0, -x_BSF.shape[-2] % self.stride))
        x_BSD = self.blocks(self.enter(whole.unflatten(-2, (-1, self.stride)).flatten(-2)))
        return cast(Tensor, self.out(self.norm(x_BSD)))
