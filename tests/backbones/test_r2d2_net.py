"""The network of R2-D2 against the sizes in the authors' code and a plain restatement of its blocks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import R2D2Net
from lightning_meta.errors import ConfigError

TINY = (4, 5, 6, 7)
SMALL = (64, 64, 64, 64)


@pytest.mark.parametrize(
    ("image_size", "channels", "features"),
    [
        (28, (96, 192, 384, 512), 1536 + 2048),
        (32, (96, 192, 384, 512), 3456 + 4608),
        (84, (96, 192, 384, 512), 31104 + 41472),
        (28, SMALL, 2 * 256),
        (32, SMALL, 2 * 576),
        (84, SMALL, 2 * 5184),
    ],
)
def test_it_has_the_published_number_of_features(
    image_size: int, channels: tuple[int, int, int, int], features: int
) -> None:
    """The widths of the ridge regression in the authors' code, the third layer's part and the fourth's."""
    with torch.device("meta"):
        network = R2D2Net(3, image_size, channels)
        assert network(torch.empty(2, 3, image_size, image_size)).shape == (2, features)
    assert network.out_features == features


def test_it_computes_the_published_function() -> None:
    network = R2D2Net(3, 33, TINY).eval()
    parameters = [p.detach().normal_() for p in network.parameters()]
    x = torch.randn(4, 3, 33, 33)

    def block(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, stride: int) -> Tensor:
        h = F.batch_norm(F.conv2d(x, weight, padding="same"), None, None, scale, shift, training=True)
        h = torch.where(h > 0, h, 0.1 * h)
        return h.unfold(2, 2, stride).unfold(3, 2, stride).amax((-1, -2))

    one = block(x, *parameters[:3], stride=2)
    two = block(one, *parameters[3:6], stride=2)
    three = block(two, *parameters[6:9], stride=2)
    four = block(three, *parameters[9:], stride=1)
    pooled = three.unfold(2, 2, 1).unfold(3, 2, 1).amax((-1, -2))
    assert [h.shape[-1] for h in (one, two, three, four)] == [16, 8, 4, 3]
    torch.testing.assert_close(network(x), torch.cat([pooled.flatten(1), four.flatten(1)], 1), rtol=1e-4, atol=1e-4)


def test_only_the_last_two_blocks_drop_values_and_only_in_training() -> None:
    dropping, plain = R2D2Net(3, 32, TINY, dropout=0.4), R2D2Net(3, 32, TINY, dropout=0.0)
    assert [m.p for m in dropping.modules() if isinstance(m, nn.Dropout)] == [0, 0, 0.4, 0.4]
    plain.load_state_dict(dropping.state_dict())
    x = torch.rand(4, 3, 32, 32)
    assert not torch.equal(dropping(x), dropping(x))
    torch.testing.assert_close(dropping.eval()(x), plain.train()(x), rtol=0, atol=0)


def test_images_that_vanish_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size=15 .* 16"):
        R2D2Net(image_size=15, channels=TINY)
