"""Random quadratic functions of two variables.

Hochreiter, Younger, Conwell: "Learning to Learn Using Gradient Descent" (2001), International Conference on Artificial
Neural Networks: y = a x1^2 + b x2^2 + c x1 x2 + d x1 + e x2 + f. Here coefficients and inputs are uniform in [-1, 1],
and y is mapped from [-6, 6], which it cannot leave, to [0, 1].
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, subkeys, uniform
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError

COEFFICIENTS = 6
MEAN = 0.5  # of y over all functions


def monomials(x: Tensor) -> Tensor:
    """`(..., 2)` to `(..., 6)`: x1^2, x2^2, x1 x2, x1, x2, 1."""
    x1, x2 = x.unbind(-1)
    return torch.stack([x1.square(), x2.square(), x1 * x2, x1, x2, torch.ones_like(x1)], dim=-1)


@dataclass(frozen=True)
class QuadraticSource(TaskSource):
    """Draws quadratics. Training, validation and test share the distribution and differ in their random streams."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a quadratic is a regression task with one output: n_way must be 1, not {shape.n_way}.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, K, 2)` and query `(T, Q, 2)` points with values `(T, K, 1)` and `(T, Q, 1)`."""
        coefficient_key, point_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        points = shape.k_shot + shape.n_query
        coefficients_TC = torch.from_numpy(uniform(coefficient_key, COEFFICIENTS, -1, 1))
        x_TM2 = torch.from_numpy(uniform(point_key, 2 * points, -1, 1)).unflatten(-1, (points, 2))
        y_TM1 = MEAN + (monomials(x_TM2) @ coefficients_TC[..., None]) / (2 * COEFFICIENTS)
        x, y = (values.float().to(self.device) for values in (x_TM2, y_TM1))
        k = shape.k_shot
        return Episode(support=Batch(x[:, :k], y[:, :k]), query=Batch(x[:, k:], y[:, k:]))

    def to(self, device: torch.device) -> "QuadraticSource":
        return QuadraticSource(device)


class Quadratics(EpisodicDataModule):
    """Quadratic functions with random coefficients: `k_shot` support and `n_query` query points of each."""

    def __init__(self, n_way: int = 1, k_shot: int = 20, n_query: int = 5, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)

    def load_source(self, split: Split) -> TaskSource:
        return QuadraticSource()
