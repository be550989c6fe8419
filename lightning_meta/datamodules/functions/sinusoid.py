"""The sinusoid regression of MAML.

Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), arXiv:1703.03400,
section 5.1: y = A sin(x - phase) with A in [0.1, 5], phase in [0, pi] and x in [-5, 5], all uniform.
"""

from dataclasses import dataclass, field
from math import pi
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, subkeys, uniform
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError


@dataclass(frozen=True)
class SinusoidSource(TaskSource):
    """Draws sine waves. Training, validation and test share the distribution and differ in their random streams."""

    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, pi)
    x_range: tuple[float, float] = (-5.0, 5.0)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a sine wave is a regression task with one output: n_way must be 1, not {shape.n_way}.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, K, 1)` and query `(T, Q, 1)` points with their values."""
        point_key = subkeys(keys, [1])[..., 0]
        x_TM = uniform(point_key, shape.k_shot + shape.n_query, *self.x_range)
        y_TM = self.wave(keys, x_TM)
        x, y = (torch.from_numpy(values).float().unsqueeze(-1).to(self.device) for values in (x_TM, y_TM))
        k = shape.k_shot
        return Episode(support=Batch(x[:, :k], y[:, :k]), query=Batch(x[:, k:], y[:, k:]))

    def wave(self, keys: Keys, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """True values `(T, M)` of the waves of T episodes at `x`, `(T, M)` or `(M,)`."""
        unit_T2 = uniform(subkeys(keys, [0])[..., 0], 2)
        amplitude_T1 = self.amplitude[0] + (self.amplitude[1] - self.amplitude[0]) * unit_T2[:, :1]
        phase_T1 = self.phase[0] + (self.phase[1] - self.phase[0]) * unit_T2[:, 1:]
        return amplitude_T1 * np.sin(x - phase_T1)

    def to(self, device: torch.device) -> "SinusoidSource":
        return SinusoidSource(self.amplitude, self.phase, self.x_range, device)


class Sinusoid(EpisodicDataModule):
    """Sine waves of random amplitude and phase: `k_shot` support and `n_query` query points per wave."""

    def __init__(self, n_way: int = 1, k_shot: int = 5, n_query: int = 5, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)

    def load_source(self, split: Split) -> TaskSource:
        return SinusoidSource()
