"""Points are where their class says, uniform there, and the same for the same key."""

from math import pi

import numpy as np
import pytest
import torch

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import Circles
from lightning_meta.datamodules.functions.circles import CircleSource
from lightning_meta.errors import ConfigError
from tests.datamodules.test_episodes import ready


def test_points_are_on_the_side_of_their_class_and_uniform_there() -> None:
    """Inside, the squared distance is uniform; outside, as many are in the left half as its free area says."""
    keys = episode_keys(0, 2, range(3000))
    circles = CircleSource().circles(keys)
    _, query = CircleSource().sample(keys, EpisodeShape(2, 1, 4))
    assert query.y[0].tolist() == [0] * 4 + [1] * 4
    distance = np.linalg.norm(query.x.numpy() - circles[:, None, :2], axis=-1) / circles[:, 2:]
    assert (distance[:, :4] > 1 - 1e-5).all() and (distance[:, 4:] < 1 + 1e-5).all()
    share = distance[:, 4:] ** 2
    assert abs(share.mean() - 1 / 2) < 4 * (1 / 12 / share.size) ** 0.5
    assert query.x.abs().max() <= 1
    apart = CircleSource(centre=0.0, radius=(0.5, 0.5)).sample(keys, EpisodeShape(2, 1, 4)).query.x[:, :4]
    band = (apart.abs().amax(-1) > 0.5).double()
    assert abs(band.mean() - 3 / (4 - pi / 4)) < 4 * (0.25 / band.numel()) ** 0.5, "the frame around the middle"


def test_episodes_are_a_function_of_their_key() -> None:
    data = ready(Circles(k_shot=2, n_query=3)).dataset("test")
    episodes = data.__getitems__([5, 2])
    assert episodes.support.x.shape == (2, 4, 2) and episodes.support.y.tolist() == [[0, 0, 1, 1]] * 2
    assert torch.equal(data[2].query.x, episodes.query.x[1])
    assert not torch.equal(episodes.support.x[0], episodes.support.x[1])
    with pytest.raises(ConfigError, match="n_way must be 2, not 5"):
        ready(Circles(n_way=5))
