"""Functions of one variable, drawn from Gaussian processes: the regression of the neural processes.

As in Garnelo et al.: "Conditional Neural Processes" (2018), arXiv:1807.01613, section 4.1, and Kim et al.: "Attentive
Neural Processes" (2019), arXiv:1901.05761, section 4.1.

Deviations: each function has a kernel of its own, one of three kinds; the papers fix the kind. Values have noise of
standard deviation 0.1, the smallest that their networks can state; with less noise no network of theirs
could come near the true log-likelihood.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import pi, sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import EpisodeShape, Split, TaskSource
from lightning_meta.datamodules.sampling import Keys, choose, normal, subkeys, uniform
from lightning_meta.errors import ConfigError

Array = npt.NDArray[np.float64]
Kernel = Literal["rbf", "matern", "periodic"]
KERNELS: tuple[Kernel, ...] = ("rbf", "matern", "periodic")


@dataclass(frozen=True)
class GaussianProcessSource(TaskSource):
    """Draws functions with mean 0. Kind and parameters of the kernel are drawn for each episode, all uniformly.

    With distance d, length l, amplitude a and period p, the kernels are a^2 times: exp(-d^2 / 2l^2) (`rbf`),
    (1 + s + s^2 / 3) exp(-s) with s = sqrt(5) d / l (`matern`, of smoothness 5/2), and that of `rbf` with the chord
    p sin(pi d / p) / pi of a circle in place of d (`periodic`).
    """

    kernels: tuple[Kernel, ...] = KERNELS
    length_scale: tuple[float, float] = (0.3, 1.0)
    amplitude: tuple[float, float] = (0.5, 1.5)
    period: tuple[float, float] = (1.5, 3.0)
    noise: float = 0.1
    x_range: tuple[float, float] = (-2.0, 2.0)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a function is a regression task with one output: n_way must be 1, not {shape.n_way}.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, K, 1)` and query `(T, Q, 1)` points with their noisy values."""
        x, y = (torch.from_numpy(values).float().unsqueeze(-1).to(self.device) for values in self._points(keys, shape))
        k = shape.k_shot
        return Episode(support=Batch(x[:, :k], y[:, :k]), query=Batch(x[:, k:], y[:, k:]))

    def posterior(self, keys: Keys, shape: EpisodeShape, x: Array | None = None) -> tuple[Array, Array]:
        """What is to be known of noisy values, given the support set and the true kernel, by Bayes' rule.

        No predictions of single points have a larger log-likelihood, on average over episodes.

        Args:
            keys: of T episodes.
            shape: theirs.
            x: where, `(M,)`. None: at the query points.

        Returns:
            Means and standard deviations, `(T, M)`.
        """
        k = shape.k_shot
        x_TM, y_TM = self._points(keys, shape)
        target_TM = x_TM[:, k:] if x is None else np.broadcast_to(x, (len(keys), len(x)))
        support_TKK = self._covariance(keys, x_TM[:, :k], x_TM[:, :k]) + self.noise**2 * np.eye(k)
        cross_TKM = self._covariance(keys, x_TM[:, :k], target_TM)
        weights_TKM = np.linalg.solve(support_TKK, cross_TKM)
        mean_TM = (weights_TKM * y_TM[:, :k, None]).sum(1)
        prior_T1 = self._covariance(keys, target_TM[:, :1], target_TM[:, :1])[..., 0]  # the same everywhere
        variance_TM = prior_T1 + self.noise**2 - (weights_TKM * cross_TKM).sum(1)
        return mean_TM, np.sqrt(variance_TM)

    def _points(self, keys: Keys, shape: EpisodeShape) -> tuple[Array, Array]:
        """Places and noisy values `(T, K + Q)`, support points first."""
        x_key, y_key = np.moveaxis(subkeys(keys, [2, 3]), -1, 0)
        points = shape.k_shot + shape.n_query
        x_TM = uniform(x_key, points, *self.x_range)
        root_TMM = np.linalg.cholesky(self._covariance(keys, x_TM, x_TM) + self.noise**2 * np.eye(points))
        return x_TM, (root_TMM @ normal(y_key, points)[..., None])[..., 0]

    def _covariance(self, keys: Keys, a_TM: Array, b_TN: Array) -> Array:
        """Covariance `(T, M, N)` of the functions' values at `a` and at `b`, without noise."""
        kind_key, parameter_key = np.moveaxis(subkeys(keys, [0, 1]), -1, 0)
        units_T3 = uniform(parameter_key, 3)
        length, amplitude, period = (
            (low + (high - low) * unit_T)[:, None, None]
            for (low, high), unit_T in zip((self.length_scale, self.amplitude, self.period), units_T3.T, strict=True)
        )
        distance = np.abs(a_TM[:, :, None] - b_TN[:, None, :])
        s = sqrt(5) * distance / length
        correlations = {
            "rbf": rbf(distance / length),
            "matern": (1 + s + s**2 / 3) * np.exp(-s),
            "periodic": rbf(period / pi * np.sin(pi * distance / period) / length),
        }
        kind_T = choose(kind_key, len(self.kernels), 1)[:, 0]
        of_kind = np.stack([correlations[name] for name in self.kernels])
        return amplitude**2 * of_kind[kind_T, np.arange(len(keys))]

    def to(self, device: torch.device) -> "GaussianProcessSource":
        return replace(self, device=device)


def rbf(scaled_distance: Array) -> Array:
    return np.exp(-(scaled_distance**2) / 2)


class GaussianProcess(EpisodicDataModule):
    """Draws of Gaussian processes on [-2, 2]: `k_shot` support and `n_query` query points of each function.

    Args:
        n_way: must be 1.
        k_shot, n_query: points of a function.
        kernels: the kinds that functions are drawn from: `rbf`, `matern` (5/2) and `periodic`.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        n_way: int = 1,
        k_shot: int = 10,
        n_query: int = 50,
        kernels: Sequence[Kernel] = KERNELS,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        if not kernels or set(kernels) - set(KERNELS):
            raise ConfigError(f"kernels={list(kernels)} must name at least one of {', '.join(KERNELS)}, and no others.")
        self.kernels = tuple(kernels)

    def load_source(self, split: Split) -> TaskSource:
        return GaussianProcessSource(self.kernels)
