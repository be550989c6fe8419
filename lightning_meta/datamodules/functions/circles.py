"""Circles in the plane: what is inside? A few points leave many answers.

After the ambiguous classification task of Finn, Xu, Levine: "Probabilistic Model-Agnostic Meta-Learning" (2018),
arXiv:1806.02817, section 5.

Deviations: there are examples of both classes. The paper does not say how its circles are drawn.
"""

from dataclasses import dataclass, field, replace
from math import pi
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, subkeys, uniform
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError

TRIES = 64  # for a point outside; a circle covers at most a third of the square, so all miss once in 10^30 points


@dataclass(frozen=True)
class CircleSource(TaskSource):
    """Points of the square [-1, 1]^2: class 0 is uniform outside a circle, class 1 inside of it.

    Attributes:
        centre: its coordinates are uniform in [-centre, centre].
        radius: uniform between two numbers.
    """

    centre: float = 0.4
    radius: tuple[float, float] = (0.3, 0.6)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 2:
            raise ConfigError(f"a point is outside a circle or inside: n_way must be 2, not {shape.n_way}.")

    def circles(self, keys: Keys) -> npt.NDArray[np.float64]:
        """Centre and radius `(T, 3)` of the circles of T episodes."""
        unit_T3 = uniform(subkeys(keys, [0])[..., 0], 3)
        low, high = self.radius
        return np.column_stack([self.centre * (2 * unit_T3[:, :2] - 1), low + (high - low) * unit_T3[:, 2]])

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Points `(T, 2 K, 2)` and `(T, 2 Q, 2)`, those of class 0 first."""
        k, points = shape.k_shot, shape.k_shot + shape.n_query
        circle_T3 = self.circles(keys)
        centre_T12, radius_T11 = circle_T3[:, None, :2], circle_T3[:, 2:, None]
        inside_key, outside_key = np.moveaxis(subkeys(keys, [1, 2]), -1, 0)
        unit_TM2 = uniform(inside_key, 2 * points).reshape(-1, points, 2)
        distance_TM, angle_TM = np.sqrt(unit_TM2[..., 0]), 2 * pi * unit_TM2[..., 1]
        directions_TM2 = np.stack([np.cos(angle_TM), np.sin(angle_TM)], -1)
        inside_TM2 = centre_T12 + radius_T11 * distance_TM[..., None] * directions_TM2
        tries_TMA2 = uniform(subkeys(outside_key, range(points)), 2 * TRIES, -1, 1).reshape(-1, points, TRIES, 2)
        out_TMA = np.linalg.norm(tries_TMA2 - centre_T12[:, :, None], axis=-1) > radius_T11
        first_TM11 = out_TMA.argmax(-1)[..., None, None]
        outside_TM2 = np.take_along_axis(tries_TMA2, first_TM11, 2)[:, :, 0]
        x = torch.from_numpy(np.stack([outside_TM2, inside_TM2], 1)).float().to(self.device)
        return Episode(labelled(x[:, :, :k]), labelled(x[:, :, k:]))

    def to(self, device: torch.device) -> "CircleSource":
        return replace(self, device=device)


def labelled(x_TNM2: Tensor) -> Batch:
    """Points class by class, with their classes."""
    tasks, classes, points = x_TNM2.shape[:3]
    y_TN = torch.arange(classes, device=x_TNM2.device).expand(tasks, classes)
    return Batch(x_TNM2.flatten(1, 2), y_TN.repeat_interleave(points, 1))


class Circles(EpisodicDataModule):
    """Circles of random centre and radius: `k_shot` support points inside, and as many outside."""

    def __init__(self, n_way: int = 2, k_shot: int = 1, n_query: int = 15, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)

    def load_source(self, split: Split) -> TaskSource:
        return CircleSource()
