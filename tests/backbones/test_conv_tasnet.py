"""Learned filters and the temporal network: against the Fourier transform, and layers of torch that share no code."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.backbones.conv_tasnet import Filterbank, MaskNetwork, Shifts, loudness
from lightning_meta.errors import ConfigError


@pytest.mark.parametrize("window", [2, 8, 30, 64])
@pytest.mark.parametrize("length", [1, 63, 64, 100])
@torch.no_grad()
def test_what_is_taken_apart_is_put_together_again(window: int, length: int) -> None:
    """At first, when nothing is learned."""
    filters, x = Filterbank(window).double(), torch.randn(3, length, dtype=torch.float64)
    torch.testing.assert_close(filters.decode(filters.encode(x), length), x, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_at_first_the_filters_are_a_fourier_transform() -> None:
    filters, x = Filterbank(32).double(), torch.randn(2, 96, dtype=torch.float64)
    ours = filters.encode(x)
    shape = torch.hann_window(32, dtype=torch.float64).sqrt()
    theirs = torch.stft(F.pad(x, (16, 16)), 32, 16, window=shape, center=False, return_complex=True).mT  # (B, S, F)
    theirs = torch.stack([theirs.real, -theirs.imag], -2) * (2 / 32) ** 0.5
    theirs[..., [0, -1]] /= 2**0.5  # which stand for themselves alone
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the filters are made in fp32


@torch.no_grad()
def test_magnitudes_hardly_follow_the_phase() -> None:
    """So that a tone looks the same wherever it begins."""
    filters, time = Filterbank(64).double(), torch.arange(640, dtype=torch.float64)
    tones = torch.stack([torch.sin(2 * torch.pi * time / 8 + phase) for phase in (0.0, 0.7, 1.5)])
    coefficients = filters.encode(tones)[:, 2:-2]
    seen = loudness(coefficients)
    assert (seen - seen[0]).abs().max() < 0.1 * seen.max()
    assert (coefficients - coefficients[0]).abs().max() > 0.9 * coefficients.abs().max()


@torch.no_grad()
def test_shifts_are_a_dilated_convolution_of_each_channel() -> None:
    x = torch.randn(2, 11, 5, dtype=torch.float64)
    for dilation in (1, 2, 4, 16):
        ours = Shifts(5, dilation).double()
        theirs = F.conv1d(x.mT, ours.weight.T[:, None], padding=dilation, dilation=dilation, groups=5).mT
        torch.testing.assert_close(ours(x), theirs)


@torch.no_grad()
def test_a_network_is_that_of_torchs_convolutions() -> None:
    """The architecture of the paper: 1x1 convolutions, PReLU, normalisation over channels and time, dilated shifts."""
    network, x = MaskNetwork(6, 4, 5, 2, 2, outputs=3).double(), torch.randn(2, 9, 6, dtype=torch.float64)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    norm, first, *blocks, rectify, last = network.layers

    def normalised(h_BCS: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        return F.group_norm(h_BCS, 1, layer.weight, layer.bias)

    def pointwise(h_BCS: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        return F.conv1d(h_BCS, layer.weight[..., None], layer.bias)

    h = pointwise(normalised(x.mT, norm), first)
    for dilation, block in zip([1, 2, 1, 2], blocks, strict=True):
        widen, slope, inner, shifts, slope2, inner2, narrow = block.layers
        g = normalised(F.prelu(pointwise(h, widen), slope.weight), inner)
        g = F.conv1d(g, shifts.weight.T[:, None], padding=dilation, dilation=dilation, groups=5)
        h = h + pointwise(normalised(F.prelu(g, slope2.weight), inner2), narrow)
    theirs = pointwise(F.prelu(h, rectify.weight), last).mT
    torch.testing.assert_close(network(x), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("window", "message"), [(0, "window=0 must be at least 2"), (7, "window=7 samples are shifted")]
)
def test_windows_that_do_not_overlap_are_refused(window: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Filterbank(window)
