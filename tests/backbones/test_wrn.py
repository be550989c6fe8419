"""Wide residual networks against the published sizes and a plain restatement of their block."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import WideResNet
from lightning_meta.errors import ConfigError


def parameters_of(depth: int, width: int, in_channels: int = 3) -> int:
    """Convolutions, then scale and shift of each normalisation, group by group; no head."""
    total, channels = 9 * in_channels * 16, 16
    for filters in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * channels + 9 * channels * filters + 2 * filters + 9 * filters * filters
            total += channels * filters if channels != filters else 0
            channels = filters
    return total + 2 * channels


@pytest.mark.parametrize(
    ("depth", "width", "published"), [(28, 10, 36.5), (16, 8, 11.0), (22, 8, 17.2), (40, 4, 8.9), (40, 1, 0.6)]
)
def test_it_has_the_published_number_of_parameters(depth: int, width: int, published: float) -> None:
    """In millions, with the linear head of 10 classes that the paper's tables count."""
    with torch.device("meta"):
        network = WideResNet(3, 32, depth, width)
        found = sum(p.numel() for p in network.parameters())
    assert found == parameters_of(depth, width)
    assert round((found + 10 * (network.out_features + 1)) / 1e6, 1) == published


def test_wrn_28_10_is_the_default() -> None:
    with torch.device("meta"):
        network = WideResNet(3, 32)
    assert sum(p.numel() for p in network.parameters()) == 36_472_784
    assert network.out_features == 640
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 28


@pytest.mark.parametrize(("image_size", "side"), [(28, 7), (32, 8), (84, 21)])
def test_two_groups_halve_the_resolution(image_size: int, side: int) -> None:
    network = WideResNet(1, image_size, depth=10, width=1)
    assert network.blocks(network.stem(torch.rand(2, 1, image_size, image_size))).shape == (2, 64, side, side)


@pytest.mark.parametrize("group", [0, 1], ids=["same shape", "projected"])
def test_a_block_computes_the_published_function(group: int) -> None:
    block = WideResNet(3, 32, depth=10, width=1).blocks[group]
    assert (block.project is None) == (group == 0)
    g1, b1, w1, g2, b2, w2, *shortcut = (p.detach().normal_() for p in block.parameters())
    x = torch.randn(4, 16, 8, 8)

    def activate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, scale, shift, training=True).clamp(min=0)

    active, stride = activate(x, g1, b1), group + 1
    h = activate(F.conv2d(active, w1, stride=stride, padding=1), g2, b2)
    expected = F.conv2d(h, w2, padding=1) + (F.conv2d(active, shortcut[0], stride=stride) if shortcut else x)
    torch.testing.assert_close(block(x), expected)


def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    dropping, plain = (WideResNet(3, 16, depth=10, width=1, dropout=rate) for rate in (0.3, 0.0))
    plain.load_state_dict(dropping.state_dict())
    x = torch.rand(4, 3, 16, 16)
    assert not torch.equal(dropping(x), dropping(x))
    torch.testing.assert_close(dropping.eval()(x), plain.train()(x), rtol=0, atol=0)


def test_weights_start_as_kaiming_says() -> None:
    torch.manual_seed(0)
    weight = WideResNet(3, 32, depth=10, width=2).blocks[2].residual[0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"), [({"depth": 20}, r"depth=20 .* 22"), ({"image_size": 3}, r"image_size=3 .* 4")]
)
def test_impossible_sizes_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WideResNet(**settings)
