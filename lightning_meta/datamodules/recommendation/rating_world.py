"""A made-up world of users who rate items, in which the best predictions are known.

The problem is that of Lee et al.: "MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation" (2019),
arXiv:1908.00413: a new user has rated a few items, and users and items are known by their attributes alone. The world
is a factor model: a rating is the product of what a user likes and what an item is like, and noise.

What a user likes is normal around what the attributes say, and ratings are linear in it. So its posterior is normal, in
closed form, and whoever knows how attributes count can do no better than its mean.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, choose_each, episode_keys, normal, subkeys, whole
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError, require_at_least

Array = npt.NDArray[np.float64]
WORLD = 3000  # the stream of random numbers of how attributes count, beside those of episodes
USER_FIELDS = (7, 12)  # values of each attribute of a user: an age group, an occupation
ITEM_FIELDS = (18, 20, 10)  # of an item: genres, of which it has up to three, a director, a decade
FEATURES = sum(USER_FIELDS) + sum(ITEM_FIELDS)
MOST_GENRES = 3
MEAN = 3.0  # of ratings
# Parts of the variance of ratings, about: what all like, how generous a user is, taste, and noise.
POPULARITY, GENEROSITY, TASTE, NOISE = 0.15, 0.1, 0.5, 0.25


class Ratings(NamedTuple):
    """Of T users, M items each: features `(T, M, F)`, and what ratings are made of.

    `mean (T, M)` is the rating that the attributes of user and item let expect. A rating is that, plus `factors (T, M,
    L + 1)` times what is peculiar to the user `(T, L + 1)`, plus noise.
    """

    features: Array
    mean: Array
    factors: Array
    peculiar: Array
    noise: Array

    @property
    def values(self) -> Array:
        """The ratings `(T, M)`."""
        return self.mean + (self.factors @ self.peculiar[..., None])[..., 0] + self.noise


@dataclass(frozen=True)
class RatingSource(TaskSource):
    """Draws users, and items that they rate.

    Attributes:
        key: of the world, `(1,)`: how attributes count.
        latent: L, numbers that say what an item is like and what a user likes.
        explained: the part of the variance of what users like that their attributes explain.
    """

    key: Keys
    latent: int = 4
    explained: float = 0.3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a task is one user: n_way must be 1, not {shape.n_way}.")

    @cached_property
    def world(self) -> tuple[Array, Array, Array]:
        """By feature: what users with it like, what items with it are like `(F, L)`, and their popularity `(F,)`."""
        keys = subkeys(self.key, range(3))[0]
        users, items = (normal(key, FEATURES * self.latent).reshape(FEATURES, self.latent) for key in keys[:2])
        return users, items, normal(keys[2], FEATURES)

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support and query items, features `(T, M, F)` and ratings `(T, M, 1)`."""
        ratings, k = self.ratings(keys, shape), shape.k_shot
        x, y = (torch.from_numpy(v).float().to(self.device) for v in (ratings.features, ratings.values[..., None]))
        return Episode(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:]))

    def ratings(self, keys: Keys, shape: EpisodeShape) -> Ratings:
        """All that is drawn for the users of these keys."""
        user_key, item_key, peculiar_key, noise_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        items = shape.k_shot + shape.n_query
        user_TF, item_TMF = user_features(user_key), item_features(subkeys(item_key, range(items)))
        users_FL, items_FL, popularity_F = self.world
        liked_TL = user_TF @ users_FL * np.sqrt(self.explained / len(USER_FIELDS))
        # An item's genres count as much as one director does.
        counts_TMF = item_TMF / np.sqrt(len(ITEM_FIELDS))
        like_TML = counts_TMF @ items_FL * np.sqrt(TASTE / self.latent)
        mean_TM = MEAN + (like_TML @ liked_TL[..., None])[..., 0] + np.sqrt(POPULARITY) * (counts_TMF @ popularity_F)
        return Ratings(
            np.concatenate([np.broadcast_to(user_TF[:, None], item_TMF.shape) + (item_TMF > 0)], -1),
            mean_TM,
            np.concatenate([like_TML, np.ones_like(like_TML[..., :1])], -1),
            normal(peculiar_key, self.latent + 1) * self.prior_std,
            np.sqrt(NOISE) * normal(noise_key, items),
        )

    @property
    def prior_std(self) -> Array:
        """Standard deviations of what is peculiar to a user: of each number of the taste, and of the generosity."""
        return np.sqrt([*[1 - self.explained] * self.latent, GENEROSITY])

    def posterior(self, keys: Keys, shape: EpisodeShape) -> tuple[Array, Array]:
        """What is to be known of the query ratings, given those of the support set, by Bayes' rule.

        Returns:
            Means and standard deviations of the query ratings, `(T, Q)`. No predictions have a smaller squared or
            absolute error on average than the means.
        """
        ratings, k = self.ratings(keys, shape), shape.k_shot
        z_TMW = ratings.factors * self.prior_std  # of unit normal weights
        support_TKW, query_TQW = z_TMW[:, :k], z_TMW[:, k:]
        precision_TWW = support_TKW.swapaxes(1, 2) @ support_TKW / NOISE + np.eye(self.latent + 1)
        surprise_TK1 = (ratings.values - ratings.mean)[:, :k, None]
        weights_TW1 = np.linalg.solve(precision_TWW, support_TKW.swapaxes(1, 2) @ surprise_TK1 / NOISE)
        spread_TWQ = np.linalg.solve(precision_TWW, query_TQW.swapaxes(1, 2))
        variance_TQ = NOISE + (query_TQW * spread_TWQ.swapaxes(1, 2)).sum(-1)
        return ratings.mean[:, k:] + (query_TQW @ weights_TW1)[..., 0], np.sqrt(variance_TQ)

    def to(self, device: torch.device) -> "RatingSource":
        return replace(self, device=device)


def user_features(keys: Keys) -> Array:
    """Attributes of users as 0 and 1, `(*keys.shape, F)`; those of items are 0."""
    return one_of_each(keys, USER_FIELDS, 0)


def item_features(keys: Keys) -> Array:
    """Attributes of items `(*keys.shape, F)`: 1 for each that it has, of g genres 1/g each; those of users are 0."""
    genre_key, count_key, other_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
    first, (genres, *others) = sum(USER_FIELDS), ITEM_FIELDS
    features = one_of_each(other_key, others, first + genres)
    count = whole(count_key, 1, MOST_GENRES)
    chosen = choose_each(genre_key, genres, count)[..., None] == np.arange(genres)
    features[..., first : first + genres] = chosen.any(-2) / count[..., None]
    return features


def one_of_each(keys: Keys, fields: tuple[int, ...] | list[int], first: int) -> Array:
    """A value of each field, one-hot in `(*keys.shape, F)`, where the fields are side by side from `first` on."""
    features = np.zeros((*keys.shape, FEATURES))
    for index, values in enumerate(fields):
        value = choose(subkeys(keys, [index])[..., 0], values, 1)
        np.put_along_axis(features, first + value, 1, -1)
        first += values
    return features


class RatingWorld(EpisodicDataModule):
    """Users of a made-up world: `k_shot` items that one has rated, and `n_query` to be predicted.

    Inputs are 67 features that are 0 or 1: the user's attributes, then the item's. Ratings are 3 on average, with a
    standard deviation of about 1, and half of it is noise. Users of training, validation and test are different ones;
    how attributes count is the same for all.

    Args:
        n_way: must be 1.
        k_shot, n_query: items of a user.
        latent: numbers that say what an item is like and what a user likes.
        explained: the part of the variance of what users like that their attributes explain.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        n_way: int = 1,
        k_shot: int = 10,
        n_query: int = 10,
        latent: int = 4,
        explained: float = 0.3,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, latent=latent)
        if not 0 <= explained <= 1:
            raise ConfigError(f"explained={explained} is a part of the variance; take one from 0 to 1.")
        self.latent, self.explained = latent, explained

    def load_source(self, split: Split) -> RatingSource:
        return RatingSource(episode_keys(self.seed, WORLD, [0]), self.latent, self.explained)

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"latent": self.latent, "explained": self.explained}
