"""Functions of one variable, drawn from Gaussian processes: the regression of the neural processes.

As in Garnelo et al.: "Conditional Neural Processes" (2018), arXiv:1807.01613, section 4.1, and Kim et al.: "Attentive
Neural Processes" (2019), arXiv:1901.05761, section 4.1.

Deviations: each function has a kernel of its own, one of three kinds; the papers fix the kind. Values have noise of
standard deviation 0.1, the smallest that their networks can state; with less noise no network of theirs
could come near the true log-likelihood.

How well can one do? The posterior under the kernel that a function was drawn from is out of reach, as nobody is told
the kernel. What can be known without it is the average over kernels, each weighed by its evidence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import pi, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, normal, subkeys, uniform
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError

Array = npt.NDArray[np.float64]
Kernel = Literal["rbf", "matern", "periodic"]
KERNELS: tuple[Kernel, ...] = ("rbf", "matern", "periodic")
# Points of Gauss-Legendre quadrature; twice as many change the averaged log-likelihood of a test by 0.0001 nats.
LENGTHS, AMPLITUDES, PERIODS = 8, 5, 40


class KernelDraw(NamedTuple):
    """The kernels of T episodes: index of their kind, length, amplitude and period, `(T,)` each."""

    kind: npt.NDArray[np.int64]
    length: Array
    amplitude: Array
    period: Array


class AveragedPosterior(NamedTuple):
    """Mean and standard deviation of mixtures, and their log-density at the values that were to be predicted."""

    mean: Array
    std: Array
    log_density: Array


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

        No predictions of single points have a larger log-likelihood, on average over episodes; but whoever makes them
        has to know the kernel.

        Args:
            keys: of T episodes.
            shape: theirs.
            x: where, `(M,)`. None: at the query points.

        Returns:
            Means and standard deviations, `(T, M)`.
        """
        k, draw = shape.k_shot, self._kernels(keys)
        x_TM, y_TM = self._points(keys, shape)
        target_TM = x_TM[:, k:] if x is None else np.broadcast_to(x, (len(keys), len(x)))
        support_TKK = self._covariance(draw, x_TM[:, :k], x_TM[:, :k]) + self.noise**2 * np.eye(k)
        cross_TKM = self._covariance(draw, x_TM[:, :k], target_TM)
        weights_TKM = np.linalg.solve(support_TKK, cross_TKM)
        mean_TM = (weights_TKM * y_TM[:, :k, None]).sum(1)
        variance_TM = draw.amplitude[:, None] ** 2 + self.noise**2 - (weights_TKM * cross_TKM).sum(1)
        return mean_TM, np.sqrt(variance_TM)

    def averaged_posterior(self, keys: Keys, shape: EpisodeShape) -> AveragedPosterior:
        """What is to be known of the query values, given the support set and how kernels are drawn, by Bayes' rule.

        The mixture of the posteriors under all kernels, each weighed by the density of the support values under it. No
        predictions of single points made from the support set have a larger log-likelihood, on average over episodes,
        than this mixture; no normal distributions a larger one than those with its means and standard deviations.

        Args:
            keys: of T episodes.
            shape: theirs.

        Returns:
            At the query points, `(T, Q)`.
        """
        k = shape.k_shot
        x_TM, y_TM = self._points(keys, shape)
        d_TMK = np.abs(x_TM[:, :, None] - x_TM[:, None, :k])
        y_TK1, y_TQ = y_TM[:, :k, None], y_TM[:, None, k:]
        amplitudes_A, shares_A = quadrature(*self.amplitude, AMPLITUDES)
        a2_A1 = amplitudes_A[:, None] ** 2
        draw, total = self._kernels(keys), [np.zeros(()) for _ in range(4)]
        truth_TKK = self._covariance(draw, x_TM[:, :k], x_TM[:, :k]) + self.noise**2 * np.eye(k)
        truth_T = np.linalg.slogdet(truth_TKK)[1] + (y_TK1 * np.linalg.solve(truth_TKK, y_TK1)).sum((1, 2))
        for kind, length, period, share in self._grid():
            correlation_TMK = correlation(kind, d_TMK, length, period)
            # In the eigenbasis of the support's correlations all amplitudes are diagonal.
            spectrum_TK, basis_TKK = np.linalg.eigh(correlation_TMK[:, :k])
            y_T1K = y_TK1.swapaxes(1, 2) @ basis_TKK
            cross_TKQ = (correlation_TMK[:, k:] @ basis_TKK).swapaxes(1, 2)
            scale_TAK = a2_A1 * spectrum_TK[:, None] + self.noise**2
            mean_TAQ = a2_A1 * (y_T1K / scale_TAK) @ cross_TKQ
            variance_TAQ = a2_A1 + self.noise**2 - a2_A1**2 * ((1 / scale_TAK) @ cross_TKQ**2)
            # Densities relative to those under the true kernel: the ratios neither overflow nor all vanish.
            log_ratio_TA = (truth_T[:, None] - (np.log(scale_TAK) + y_T1K**2 / scale_TAK).sum(-1)) / 2
            weight_T1A = (share * shares_A * np.exp(log_ratio_TA))[:, None]
            density_TAQ = np.exp(-((y_TQ - mean_TAQ) ** 2) / (2 * variance_TAQ)) / np.sqrt(2 * pi * variance_TAQ)
            terms = np.ones_like(mean_TAQ), mean_TAQ, variance_TAQ + mean_TAQ**2, density_TAQ
            total = [sums + (weight_T1A @ term)[:, 0] for sums, term in zip(total, terms, strict=True)]
        mean_TQ, square_TQ, density_TQ = (sums / total[0] for sums in total[1:])
        return AveragedPosterior(mean_TQ, np.sqrt(square_TQ - mean_TQ**2), np.log(density_TQ))

    def _grid(self) -> Iterator[tuple[Kernel, float, float, float]]:
        """Kinds, lengths and periods of kernels, with the probability that each stands for."""
        for kind in self.kernels:
            periods = quadrature(*self.period, PERIODS if kind == "periodic" else 1)
            for length, length_share in zip(*quadrature(*self.length_scale, LENGTHS), strict=True):
                for period, period_share in zip(*periods, strict=True):
                    yield kind, length, period, length_share * period_share / len(self.kernels)

    def _points(self, keys: Keys, shape: EpisodeShape) -> tuple[Array, Array]:
        """Places and noisy values `(T, K + Q)`, support points first."""
        x_key, y_key = np.moveaxis(subkeys(keys, [2, 3]), -1, 0)
        points = shape.k_shot + shape.n_query
        x_TM = uniform(x_key, points, *self.x_range)
        covariance_TMM = self._covariance(self._kernels(keys), x_TM, x_TM) + self.noise**2 * np.eye(points)
        return x_TM, (np.linalg.cholesky(covariance_TMM) @ normal(y_key, points)[..., None])[..., 0]

    def _kernels(self, keys: Keys) -> KernelDraw:
        kind_key, parameter_key = np.moveaxis(subkeys(keys, [0, 1]), -1, 0)
        ranges = (self.length_scale, self.amplitude, self.period)
        units_3T = uniform(parameter_key, len(ranges)).T
        parameters = (low + (high - low) * unit_T for (low, high), unit_T in zip(ranges, units_3T, strict=True))
        return KernelDraw(choose(kind_key, len(self.kernels), 1)[:, 0], *parameters)

    def _covariance(self, draw: KernelDraw, a_TM: Array, b_TN: Array) -> Array:
        """Covariance `(T, M, N)` of the functions' values at `a` and at `b`, without noise."""
        covariance_TMN = np.abs(a_TM[:, :, None] - b_TN[:, None, :])
        for index, kind in enumerate(self.kernels):
            (rows,) = np.nonzero(draw.kind == index)
            length, amplitude, period = (parameter[rows, None, None] for parameter in draw[1:])
            covariance_TMN[rows] = amplitude**2 * correlation(kind, covariance_TMN[rows], length, period)
        return covariance_TMN

    def to(self, device: torch.device) -> "GaussianProcessSource":
        return replace(self, device=device)


def correlation(kind: Kernel, distance: Array, length: Array | float, period: Array | float) -> Array:
    """Of the values at places so far apart."""
    if kind == "matern":
        s = sqrt(5) * distance / length
        return (1 + s + s**2 / 3) * np.exp(-s)
    chord = period / pi * np.sin(pi * distance / period) if kind == "periodic" else distance
    return np.exp(-((chord / length) ** 2) / 2)


def quadrature(low: float, high: float, points: int) -> tuple[Array, Array]:
    """Places and weights whose sum is the mean of a smooth function on [low, high]."""
    places, weights = np.polynomial.legendre.leggauss(points)
    return low + (high - low) * (places + 1) / 2, weights / 2


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


class RBFProcess(GaussianProcess):
    """Draws of one Gaussian process with the kernel `rbf`: its posterior is what the best predictor says.

    Args:
        length_scale, amplitude: of the kernel.
        **kwargs: of `GaussianProcess`, but `kernels`.
    """

    def __init__(self, length_scale: float = 0.6, amplitude: float = 1.0, **kwargs: Any) -> None:
        super().__init__(kernels=("rbf",), **kwargs)
        if min(length_scale, amplitude) <= 0:
            raise ConfigError(f"length_scale={length_scale} and amplitude={amplitude} must be positive.")
        self.length_scale, self.amplitude = length_scale, amplitude

    def load_source(self, split: Split) -> TaskSource:
        return GaussianProcessSource(self.kernels, (self.length_scale,) * 2, (self.amplitude,) * 2)
