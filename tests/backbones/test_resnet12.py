"""ResNet-12 against the published sizes and a plain restatement of its block."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import DropBlock, ResNet12
from lightning_meta.errors import ConfigError

TINY = (4, 5, 6, 7)


def parameters_of(channels: tuple[int, ...], in_channels: int = 3) -> int:
    """Per block: three 3x3 convolutions, a 1x1 one on the shortcut, and scale and shift of four normalisations."""
    inputs = (in_channels, *channels[:-1])
    return sum(9 * a * b + 2 * 9 * b * b + a * b + 4 * 2 * b for a, b in zip(inputs, channels, strict=True))


@pytest.mark.parametrize(
    ("channels", "published", "exact"),
    [((64, 160, 320, 640), 12.4, 12_424_320), ((64, 128, 256, 512), 8.0, 7_996_800)],
    ids=["wide", "narrow"],
)
def test_it_has_the_published_number_of_parameters(
    channels: tuple[int, int, int, int], published: float, exact: int
) -> None:
    """In millions, for colour images and without a head."""
    with torch.device("meta"):
        found = sum(p.numel() for p in ResNet12(3, 84, channels).parameters())
    assert found == parameters_of(channels) == exact
    assert round(found / 1e6, 1) == published


@torch.no_grad()
def test_features_are_maps_of_the_shape_that_it_says() -> None:
    """For algorithms that compare maps, such as Relation Networks."""
    maps = []
    network = ResNet12(1, 48, TINY, global_pool=False, drop_rate=0.0)
    network.blocks.register_forward_hook(lambda *found: maps.append(found[2]))
    features = network(torch.rand(2, 1, 48, 48))
    assert torch.equal(features.unflatten(1, network.map_shape), maps[0])
    assert network.map_shape == (7, 3, 3)
    assert ResNet12(1, 48, TINY).map_shape == (7, 1, 1)


@pytest.mark.parametrize(("image_size", "side"), [(84, 5), (32, 2), (28, 1)])
def test_features_are_averaged_or_flattened(image_size: int, side: int) -> None:
    """At 84x84, 640 features or, as in MetaOptNet, 640 x 5 x 5 = 16000."""
    with torch.device("meta"):
        assert ResNet12(3, image_size).out_features == 640
        assert ResNet12(3, image_size, global_pool=False).out_features == 640 * side**2


def test_global_pool_averages_what_is_flattened_without_it() -> None:
    pooled, flat = ResNet12(3, 32, TINY).eval(), ResNet12(3, 32, TINY, global_pool=False).eval()
    flat.load_state_dict(pooled.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(flat(x).view(2, 7, 4).mean(2), pooled(x))


def test_a_block_computes_the_published_function() -> None:
    block = ResNet12(3, 32, TINY).eval().blocks[0]
    w1, g1, b1, w2, g2, b2, w3, g3, b3, ws, gs, bs = (p.detach().normal_() for p in block.parameters())
    x = torch.randn(4, 3, 8, 8)

    def conv_norm(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.batch_norm(F.conv2d(x, weight, padding="same"), None, None, scale, shift, training=True)

    def relu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    h = relu(conv_norm(x, w1, g1, b1))
    h = relu(conv_norm(h, w2, g2, b2))
    h = relu(conv_norm(h, w3, g3, b3) + conv_norm(x, ws, gs, bs))
    torch.testing.assert_close(block(x), h.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)))


def test_drop_blocks_are_the_papers() -> None:
    """MetaOptNet: keep rate 0.9; block size 1, 1, 5, 5 for 84x84 images and 1, 1, 2, 2 for 32x32 ones."""
    for image_size, block_size in ((84, 5), (32, 2)):
        network = ResNet12(3, image_size, TINY, block_size=block_size)
        drops = [(m.drop_rate, m.block_size) for m in network.modules() if isinstance(m, DropBlock)]
        assert drops == [(0.1, 1), (0.1, 1), (0.1, block_size), (0.1, block_size)]


def test_drop_acts_in_training_and_not_in_evaluation() -> None:
    dropping, plain = ResNet12(3, 32, TINY), ResNet12(3, 32, TINY, drop_rate=0.0)
    plain.load_state_dict(dropping.state_dict())
    x = torch.rand(4, 3, 32, 32)
    assert not torch.equal(dropping(x), dropping(x))
    torch.testing.assert_close(dropping.eval()(x), plain.train()(x), rtol=0, atol=0)


def test_weights_start_as_kaiming_says() -> None:
    """Variance 2 / ((1 + 0.1^2) x 9 x filters): the gain of a leaky ReLU over the fan out."""
    torch.manual_seed(0)
    weight = ResNet12(3, 32, (8, 8, 128, 160)).blocks[3].residual[0].weight
    assert weight.std().item() == pytest.approx((2 / 1.01 / (9 * 160)) ** 0.5, rel=0.01)


def test_images_that_vanish_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size=15 .* 16"):
        ResNet12(image_size=15, channels=TINY)
