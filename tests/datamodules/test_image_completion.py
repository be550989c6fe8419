"""Pixels of an episode are those of one image, at their places."""

import pytest
import torch

from lightning_meta.core import Episode
from lightning_meta.datamodules import ImageCompletion
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, blobs

PIXELS = SIZE**2


def completion(**shape: int) -> ImageCompletion:
    data = ImageCompletion(blobs(), **shape)
    data.setup("test")
    return data


def images_of(tasks: Episode) -> torch.Tensor:
    """Put the pixels of whole images `(T, SIZE, SIZE)` where their places say."""
    x, y = (torch.cat(leaves, 1) for leaves in zip(*tasks, strict=True))
    down, right = ((x + 1) / 2 * (SIZE - 1)).round().long().unbind(-1)
    found = torch.full((len(x), SIZE, SIZE), torch.nan)
    found[torch.arange(len(x))[:, None], down, right] = y[..., 0]
    return found


def test_support_and_query_are_different_pixels_of_one_image() -> None:
    tasks = completion(k_shot=100, n_query=PIXELS - 100).dataset("test").__getitems__(range(50))
    assert tasks.support.x.shape == (50, 100, 2) and tasks.query.y.shape == (50, PIXELS - 100, 1)
    found = images_of(tasks)
    assert not found.isnan().any()  # every pixel once
    bank = blobs().load_source("test").inputs[:, 0].float() / 255
    matches = (found[:, None] == bank).flatten(2).all(2)
    assert (matches.sum(1) == 1).all()
    assert len(matches.float().argmax(1).unique()) > 30  # of 144 images, in 50 draws


def test_more_support_pixels_contain_the_fewer() -> None:
    few, many = (completion(k_shot=k, n_query=5).dataset("test").__getitems__(range(3)) for k in (10, 30))
    assert torch.equal(many.support.x[:, :10], few.support.x)
    assert torch.equal(many.support.y[:, 10:15], few.query.y)


def test_every_pixel_is_as_likely_as_any_other() -> None:
    tasks = completion(k_shot=8, n_query=1).dataset("test").__getitems__(range(4000))
    down, right = ((tasks.support.x + 1) / 2 * (SIZE - 1)).round().long().unbind(-1)
    counts = (down * SIZE + right).flatten().bincount(minlength=PIXELS)
    expected = 4000 * 8 / PIXELS
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_an_episode_is_the_same_alone_and_in_a_meta_batch() -> None:
    dataset = completion(k_shot=5, n_query=6).dataset("test")
    together, alone = dataset.__getitems__([3, 8]), dataset[8]
    assert torch.equal(together.support.x[1], alone.support.x)
    assert torch.equal(together.query.y[1], alone.query.y)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"k_shot=200 \+ n_query=100 pixels are needed, .* 16 x 16 = 256"):
        completion(k_shot=200, n_query=100).dataset("test")
    with pytest.raises(ConfigError, match="n_way must be 1, not 5"):
        completion(n_way=5, k_shot=1, n_query=1).dataset("test")
