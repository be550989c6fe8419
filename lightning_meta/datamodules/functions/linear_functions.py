"""Linear functions of several variables, and what is nearly linear: the regression of in-context learners.

As in Garg, Tsipras, Liang, Valiant: "What Can Transformers Learn In-Context? A Case Study of Simple Function Classes"
(2022), arXiv:2208.01066, section 3 and 4: inputs and weights are standard normal.

Deviations: values are scaled so that their mean square is 1, which is then the error of predicting zero; the paper
divides the error instead. Five variables in place of twenty, which need its curriculum and 500,000 steps.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, normal, subkeys
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError, require_at_least

Array = npt.NDArray[np.float64]
Kind = Literal["linear", "sparse", "noisy", "relu"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class LinearFunctionSource(TaskSource):
    """Draws functions of `D` variables.

    `linear`: w x. `sparse`: all weights but `non_zero` are zero. `noisy`: values have noise of standard deviation
    `noise` (before scaling), those of the query too. `relu`: a network with one layer of `hidden` rectified units,
    whose weights are normal with variance 1 and 2 / `hidden`.
    """

    kind: Kind = "linear"
    dims: int = 5
    non_zero: int = 2
    noise: float = 1.0
    hidden: int = 100
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a function is a regression task with one output: n_way must be 1, not {shape.n_way}.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, K, D)` and query `(T, Q, D)` points with values `(T, K, 1)` and `(T, Q, 1)`."""
        function_key, point_key, noise_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        points, k = shape.k_shot + shape.n_query, shape.k_shot
        x_TMD = normal(point_key, points * self.dims).reshape(len(keys), points, self.dims)
        y_TM = self._values(function_key, x_TMD)
        if self.kind == "noisy":
            y_TM = (y_TM + self.noise * normal(noise_key, points)) / np.sqrt(self.dims + self.noise**2)
        x, y = (torch.from_numpy(values).float().to(self.device) for values in (x_TMD, y_TM[..., None]))
        return Episode(support=Batch(x[:, :k], y[:, :k]), query=Batch(x[:, k:], y[:, k:]))

    def _values(self, keys: Keys, x_TMD: Array) -> Array:
        """Without noise `(T, M)`, scaled unless there will be noise."""
        weight_key, out_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        if self.kind == "relu":
            in_TDH = normal(weight_key, self.dims * self.hidden).reshape(len(keys), self.dims, self.hidden)
            units_TMH = np.maximum(x_TMD @ in_TDH, 0)
            out_TH = normal(out_key, self.hidden) * np.sqrt(2 / self.hidden)
            return (units_TMH @ out_TH[..., None])[..., 0] / np.sqrt(self.dims)
        weights_TD, scale = normal(weight_key, self.dims), np.sqrt(self.dims)
        if self.kind == "sparse":
            kept_TD = np.zeros_like(weights_TD)
            np.put_along_axis(kept_TD, choose(out_key, self.dims, self.non_zero), 1, axis=1)
            weights_TD, scale = weights_TD * kept_TD, np.sqrt(self.non_zero)
        return (x_TMD @ weights_TD[..., None])[..., 0] / (1 if self.kind == "noisy" else scale)

    def to(self, device: torch.device) -> "LinearFunctionSource":
        return replace(self, device=device)


class LinearFunctions(EpisodicDataModule):
    """Linear functions with random weights, and kin: `k_shot` support and `n_query` query points of each.

    Args:
        n_way: must be 1.
        k_shot, n_query: points of a function.
        kind: `linear`, `sparse`, `noisy` or `relu`.
        dims: variables.
        non_zero: of the weights, where they are sparse.
        noise: standard deviation, where values are noisy.
        hidden: rectified units of a network.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        n_way: int = 1,
        k_shot: int = 10,
        n_query: int = 20,
        kind: Kind = "linear",
        dims: int = 5,
        non_zero: int = 2,
        noise: float = 1.0,
        hidden: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, dims=dims, non_zero=non_zero, hidden=hidden)
        if kind not in KINDS:
            raise ConfigError(f"kind={kind} must be one of {', '.join(KINDS)}.")
        if kind == "sparse" and non_zero > dims:
            raise ConfigError(f"non_zero={non_zero} weights are more than dims={dims}; lower it.")
        if noise < 0:
            raise ConfigError(f"noise={noise} must not be negative.")
        self.the_source = LinearFunctionSource(kind, dims, non_zero, noise, hidden)

    def load_source(self, split: Split) -> TaskSource:
        return self.the_source
