"""Made-up ratings: features and posteriors against plain formulas and moments; and the metrics of ratings."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import RatingWorld
from lightning_meta.datamodules.recommendation.rating_world import ITEM_FIELDS, NOISE, USER_FIELDS
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMAE, EpisodicNDCG1, EpisodicNDCG3, ndcg

SHAPE = EpisodeShape(n_way=1, k_shot=6, n_query=4)


def test_the_posterior_is_that_of_a_joint_normal_distribution_of_ratings() -> None:
    """By the covariance of all ratings of a user, not by weights."""
    source, keys = RatingWorld(latent=3, explained=0.4).load_source("test"), episode_keys(0, 2, range(3))
    mean, std = source.posterior(keys, SHAPE)
    drawn = source.ratings(keys, SHAPE)
    for t in range(3):
        covariance = drawn.factors[t] @ np.diag([0.6, 0.6, 0.6, 0.1]) @ drawn.factors[t].T + NOISE * np.eye(10)
        surprise = drawn.values[t, :6] - drawn.mean[t, :6]
        for q in range(6, 10):
            weights = np.linalg.solve(covariance[:6, :6], covariance[:6, q])
            assert mean[t, q - 6] == pytest.approx(drawn.mean[t, q] + weights @ surprise, rel=1e-9)
            variance = covariance[q, q] - weights @ covariance[:6, q]
            assert std[t, q - 6] == pytest.approx(variance**0.5, rel=1e-9)


def test_no_simple_prediction_is_better_than_the_posteriors_mean_whose_error_is_what_it_says() -> None:
    source, keys = RatingWorld().load_source("test"), episode_keys(0, 2, range(2000))
    shape = EpisodeShape(1, 10, 10)
    drawn, (mean, std) = source.sample(keys, shape), source.posterior(keys, shape)
    y = drawn.query.y[..., 0].double().numpy()
    assert ((y - mean) / std).std() == pytest.approx(1, abs=0.02)
    assert np.abs(y - mean).mean() == pytest.approx((std * np.sqrt(2 / np.pi)).mean(), rel=0.02)
    error = np.square(y - mean).mean(1)
    means = drawn.support.y.double().numpy().mean(1)
    for other in (means, source.ratings(keys, shape).mean[:, 10:], 0.7 * mean + 0.3 * means):
        gain = np.square(y - other).mean(1) - error
        assert gain.mean() > 4 * gain.std() / 2000**0.5


def test_features_are_the_users_and_the_items_attributes() -> None:
    episode = RatingWorld().load_source("train").sample(episode_keys(0, 0, range(50)), SHAPE)
    x = torch.cat([episode.support.x, episode.query.x], 1)
    assert x.shape == (50, 10, 67) and ((x == 0) | (x == 1)).all()
    age, occupation, genres, director, decade = x.split([*USER_FIELDS, *ITEM_FIELDS], -1)
    assert all((part.sum(-1) == 1).all() for part in (age, occupation, director, decade))
    assert sorted(genres.sum(-1).unique().tolist()) == [1, 2, 3]
    assert all((part == part[:, :1]).all() for part in (age, occupation)), "those of a user are the same in all rows"
    assert len(director.argmax(-1)[0].unique()) > 3
    assert 0.7 < torch.cat([episode.support.y, episode.query.y], 1).std() < 1.3


def test_episodes_are_functions_of_their_keys_and_the_world_of_the_seed() -> None:
    source = RatingWorld().load_source("val")
    many, few = (source.sample(episode_keys(0, 1, ids), SHAPE) for ids in (range(9), [7]))
    assert torch.equal(many.query.x[7], few.query.x[0]) and torch.equal(many.support.y[7], few.support.y[0])
    worlds = [
        RatingWorld(seed=seed).load_source(split).world[0] for seed, split in ((0, "train"), (0, "test"), (1, "test"))
    ]
    assert (worlds[0] == worlds[1]).all() and (worlds[0] != worlds[2]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "latent=0 must be at least 1"),
        ({"explained": 1.5}, "explained=1.5 is a part of the variance; take one from 0 to 1"),
        ({"n_way": 3}, "a task is one user: n_way must be 1, not 3"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RatingWorld(**options).setup("fit")


@pytest.mark.parametrize("places", [1, 3, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_ndcg_is_that_of_scikit_learn(places: int, tied: bool) -> None:
    generator = np.random.default_rng(0)
    preds, ratings = generator.normal(size=(20, 8)), generator.integers(0, 11, (20, 8)) / 2
    if tied:
        preds = preds.round()
    found = ndcg(*(torch.tensor(values)[..., None] for values in (preds, ratings)), places)
    for t in range(20):
        gains = 2 ** ratings[t : t + 1] - 1
        assert found[t].item() == pytest.approx(ndcg_score(gains, preds[t : t + 1], k=places), rel=1e-9)


def test_ndcg_at_its_ends() -> None:
    ratings = torch.tensor([[[5.0], [1.0], [3.0], [4.0]]])
    for metric in (EpisodicNDCG1, EpisodicNDCG3):
        assert metric.per_episode(ratings, ratings).item() == 1
        assert metric.per_episode(-ratings, ratings).item() < 0.5
        assert metric.per_episode(ratings, torch.full_like(ratings, -1)).item() == 0
    assert EpisodicNDCG1.per_episode(-ratings, ratings).item() == pytest.approx(1 / 31)
    assert EpisodicMAE.per_episode(ratings + 0.5, ratings).item() == pytest.approx(0.5)
