"""The parts of a Conv-TasNet: learned filters that take a sound apart and put it together, and a network of masks.

Luo, Mesgarani: "Conv-TasNet: Surpassing Ideal Time-Frequency Magnitude Masking for Speech Separation" (2019),
arXiv:1809.07454. The filters come in pairs, of which masks see the magnitude and change both: Pariente, Cornell,
Deleforge, Vincent: "Filterbank Design for End-to-end Speech Separation" (2020), arXiv:1910.10400. They start as a
windowed Fourier transform and its inverse.

Time is the last but one axis and channels are the last, so that all but the shifts are matrix products, which `vmap`
batches well. Shapes: `B` sounds of `L` samples, `F` pairs of filters, `W` samples of a window, `S` steps, `C` channels.
"""

from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.errors import ConfigError, require_at_least

OVERLAP = 2  # windows in which every sample is
KERNEL = 3  # steps that a convolution sees
EPS = 1e-8  # of energies, beside a sound whose mean power is 1


class Filterbank(nn.Module):
    """Pairs of filters `(2, F, W)`, a quarter of a period apart: some take sounds apart, others put them together.

    Args:
        window: samples of a filter, an even number; there are `window / 2 + 1` pairs.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        require_at_least(OVERLAP, window=window)
        if window % OVERLAP:
            raise ConfigError(f"window={window} samples are shifted by a half; take an even number.")
        self.window, self.hop, self.pairs = window, window // OVERLAP, window // 2 + 1
        self.analysis = nn.Parameter(fourier(window))
        self.synthesis = nn.Parameter(fourier(window) * (2 / OVERLAP))  # so many squared Hann windows add up to one

    def encode(self, x_BL: Tensor) -> Tensor:
        """Coefficients `(B, S, 2, F)`."""
        left, after = self.window - self.hop, -x_BL.shape[-1] % self.hop
        frames_BSW = F.pad(x_BL, (left, left + after)).unfold(-1, self.window, self.hop)
        with torch.autocast(x_BL.device.type, enabled=False):  # what bfloat16 leaves out would be heard
            return (frames_BSW @ self.analysis.flatten(0, 1).T).unflatten(-1, (2, self.pairs))

    def decode(self, coefficients: Tensor, length: int) -> Tensor:
        """Sounds `(..., length)` of coefficients `(..., S, 2, F)`."""
        with torch.autocast(coefficients.device.type, enabled=False):
            frames = (coefficients.flatten(-2) @ self.synthesis.flatten(0, 1)).unflatten(-1, (OVERLAP, self.hop))
        parts = [F.pad(frames[..., q, :], (0, 0, q, OVERLAP - 1 - q)) for q in range(OVERLAP)]
        left = self.window - self.hop
        return torch.stack(parts).sum(0).flatten(-2)[..., left : left + length]


def fourier(window: int) -> Tensor:
    """Cosines and sines `(2, F, W)` under the root of a Hann window: a tight frame, which is its own inverse."""
    place_W, frequency_F = torch.arange(window, dtype=torch.float64), torch.arange(window // 2 + 1)
    angle_FW = 2 * pi * frequency_F[:, None] * place_W / window
    once = (frequency_F == 0) | (frequency_F == window // 2)  # others stand for the negative frequency too
    scale_F1 = torch.where(once, 1.0, 2.0).div(window).sqrt()[:, None]
    shape_W = torch.hann_window(window, dtype=torch.float64).sqrt()
    return (scale_F1 * shape_W * torch.stack([angle_FW.cos(), angle_FW.sin()])).float()


def loudness(coefficients: Tensor) -> Tensor:
    """What a network sees of coefficients `(..., 2, F)`: compressed magnitudes `(..., F)`."""
    return torch.log1p(10 * (coefficients.square().sum(-2) + EPS).sqrt())


class GlobalNorm(nn.Module):
    """Normalises each sound over steps and channels. Scale and shift stand outside, as `vmap` needs it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x_BSC: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x_BSC, x_BSC.shape[-2:]), self.weight)


class Shifts(nn.Module):
    """A convolution of each channel by itself over three steps, `dilation` apart."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.weight = nn.Parameter(torch.randn(KERNEL, channels) / KERNEL**0.5)

    def forward(self, x_BSC: Tensor) -> Tensor:
        steps = x_BSC.shape[-2]
        padded = F.pad(x_BSC, (0, 0, self.dilation, self.dilation))
        moved = [padded[..., k * self.dilation : k * self.dilation + steps, :] for k in range(KERNEL)]
        before, now, after = self.weight
        return torch.addcmul(torch.addcmul(moved[1] * now, moved[0], before), moved[2], after)


class Block(nn.Module):
    """A residual block of the temporal network."""

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.PReLU(), GlobalNorm(hidden),
            Shifts(hidden, dilation), nn.PReLU(), GlobalNorm(hidden), nn.Linear(hidden, channels),
        )  # fmt: skip

    def forward(self, x_BSC: Tensor) -> Tensor:
        return x_BSC + self.layers(x_BSC)


class MaskNetwork(nn.Module):
    """What masks are made from, `(B, S, outputs * F)`, of magnitudes `(B, S, F)`: the temporal convolutional network.

    Args:
        pairs: of filters.
        channels, hidden: of residual paths, and within a block.
        blocks: how many in a row, each of twice the dilation of the one before.
        repeats: how many rows.
        outputs: masks for a sound.
    """

    def __init__(self, pairs: int, channels: int, hidden: int, blocks: int, repeats: int, outputs: int = 1) -> None:
        super().__init__()
        require_at_least(1, channels=channels, hidden=hidden, blocks=blocks, repeats=repeats)
        rows = [Block(channels, hidden, 2**b) for _ in range(repeats) for b in range(blocks)]
        self.layers = nn.Sequential(
            GlobalNorm(pairs), nn.Linear(pairs, channels), *rows, nn.PReLU(), nn.Linear(channels, outputs * pairs)
        )

    def forward(self, magnitudes_BSF: Tensor) -> Tensor:
        return self.layers(magnitudes_BSF)
