"""RandAugment: how many operations an image gets, and how strong they are; no augmentation is ordinary training."""

import pytest
import torch
from torch import Tensor

from lightning_meta.algorithms import RandAugment
from lightning_meta.algorithms.bilevel import rand_augment
from lightning_meta.core import Batch
from lightning_meta.core.augment import LARGEST
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import network
from tests.conftest import SIZE

BILEVEL = {"rand-augment": lambda **kw: RandAugment(network(), 4, **kw)}


def test_every_image_gets_so_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """All equally likely, none stronger than the magnitude says."""
    seen: list[dict[str, Tensor]] = []
    monkeypatch.setattr(rand_augment, "augment_within", lambda x, largest, key: seen.append(largest) or x)
    module = RandAugment(network(), 4, per_image=3, magnitude=0.5)
    module.augmented(torch.rand(4000, 1, 2, 2))
    (largest,) = seen
    assert [*largest] == [*LARGEST]
    picked_BK = torch.stack([value / (0.5 * LARGEST[name]) for name, value in largest.items()], 1)
    assert set(picked_BK.unique().tolist()) == {0.0, 1.0} and (picked_BK.sum(1) == 3).all()
    # 3/8 of 4,000, within four standard deviations.
    assert (picked_BK.mean(0) - 3 / 8).abs().max() < 4 * (3 / 8 * 5 / 8 / 4000) ** 0.5


def test_each_image_and_each_key_draw_anew() -> None:
    module = RandAugment(network(), 4, per_image=8)
    x = torch.rand(1, 1, SIZE, SIZE).expand(3, -1, -1, -1)
    first = module.augmented(x)
    assert torch.equal(first, module.augmented(x))
    assert not torch.allclose(first[0], first[1])
    module.key = module.key + 1
    assert not torch.allclose(first, module.augmented(x))


def test_none_is_ordinary_training() -> None:
    module = RandAugment(network(), 4, per_image=0)
    weights = {name: p.detach() for name, p in module.network.named_parameters()}
    batch = Batch(torch.rand(6, 1, SIZE, SIZE), torch.arange(6) % 4)
    torch.testing.assert_close(module.inner_loss(weights, batch), module.losses(weights, batch).mean())


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="per_image=3 must be between 0 and the 1 operations"):
        RandAugment(network(), 4, per_image=3, ranges={"rotate": 30})
    with pytest.raises(ConfigError, match="ranges has turn=30"):
        RandAugment(network(), 4, ranges={"turn": 30})
    with pytest.raises(ConfigError, match="magnitude=90 a part of their ranges, between 0 and 1"):
        RandAugment(network(), 4, magnitude=90)
