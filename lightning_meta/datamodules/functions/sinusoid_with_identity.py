"""Sine waves whose input tells which wave it is: tasks that can be memorised, because they are not mutually exclusive.

Yin, Tucker, Zhou, Levine, Finn: "Meta-Learning without Memorization" (2020), arXiv:1912.03820, section 6.1. In
meta-training the amplitude is one of 20 equally spaced values in [0.1, 4], and its one-hot code is part of the input,
so that one function without adaptation fits every task. In meta-test the amplitude is uniform in [0.1, 4] and the code
is drawn independently of it: only the support set tells the amplitude. Always y = A sin(x) + noise, with x uniform in
[-5, 5] and noise of standard deviation 0.1, on query targets too: the truth has a mean squared error of 0.01.

Deviations: the authors' notebook trains on the 16 smallest of the 20 amplitudes, adds the noise of meta-test twice and
tests on 200 equally spaced points. Meta-validation, which neither has, is as meta-test.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, normal, subkeys, uniform
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError


@dataclass(frozen=True)
class SinusoidWithIdentitySource(TaskSource):
    """Draws sine waves with a one-hot code in the input.

    Attributes:
        informative: whether the code tells the amplitude, which is then one of `codes` equally spaced values. Else the
            amplitude is uniform and the code says nothing.
        codes: length of the one-hot code.
    """

    informative: bool
    codes: int = 20
    amplitude: tuple[float, float] = (0.1, 4.0)
    x_range: tuple[float, float] = (-5.0, 5.0)
    noise: float = 0.1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a sine wave is a regression task with one output: n_way must be 1, not {shape.n_way}.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, K, 1 + codes)` and query `(T, Q, 1 + codes)` inputs with values `(T, K, 1)` and `(T, Q, 1)`."""
        amplitude_key, code_key, point_key, noise_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        points = shape.k_shot + shape.n_query
        code_T1 = choose(code_key, self.codes, 1)
        if self.informative:
            amplitude_T1 = np.linspace(*self.amplitude, self.codes)[code_T1]
        else:
            amplitude_T1 = uniform(amplitude_key, 1, *self.amplitude)
        x_TM = uniform(point_key, points, *self.x_range)
        y_TM = amplitude_T1 * np.sin(x_TM) + self.noise * normal(noise_key, points)
        code_TMC = np.eye(self.codes)[np.broadcast_to(code_T1, x_TM.shape)]
        inputs_TMF = np.concatenate([x_TM[..., None], code_TMC], axis=-1)
        x, y = (torch.from_numpy(values).float().to(self.device) for values in (inputs_TMF, y_TM[..., None]))
        k = shape.k_shot
        return Episode(support=Batch(x[:, :k], y[:, :k]), query=Batch(x[:, k:], y[:, k:]))

    def to(self, device: torch.device) -> "SinusoidWithIdentitySource":
        return replace(self, device=device)


class SinusoidWithIdentity(EpisodicDataModule):
    """Sine waves of random amplitude; in training, and only there, a one-hot code in the input tells the amplitude."""

    def __init__(self, n_way: int = 1, k_shot: int = 5, n_query: int = 10, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)

    def load_source(self, split: Split) -> TaskSource:
        return SinusoidWithIdentitySource(informative=split == "train")
