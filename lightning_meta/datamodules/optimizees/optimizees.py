"""Optimizees: functions to be minimised, with the weights to start from, on which an optimizer is learned and judged.

The optimization of an optimizee is played in segments, which are as frozen as episodes: what is drawn for step s of
optimizee i of a split is a pure function of (seed, split, i, s).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch, Params
from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, episode_keys, normal, subkeys
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.episodes import STREAM, TaskDataset
from lightning_meta.errors import ConfigError

Steps = npt.NDArray[np.int64]


class Segment(NamedTuple):
    """S steps of T optimizations.

    Attributes:
        start: `(T,)` steps taken before.
        theta: the initial weights of the optimizations, `(T, ...)` by name.
        batches: what the loss is taken of in each step and after the last, `(T, S + 1, ...)`.
    """

    start: Tensor
    theta: Params
    batches: Batch


class OptimizeeDataModule(TaskDataModule):
    """Streams of optimizees. A kind of optimizee writes `loss` and `sample`.

    A training batch is a segment of `truncation` steps of each of `meta_batch_size` optimizees; the next batch goes on
    with the same ones until they have had `unroll_steps`. Validation and test optimizees are optimized to the end.

    Args:
        unroll_steps: of an optimization.
        truncation: steps of a segment.
        **kwargs: of `TaskDataModule`; `steps_per_epoch` counts segments, `val_episodes` and `test_episodes` optimizees.
    """

    def __init__(
        self,
        unroll_steps: int = 100,
        truncation: int = 20,
        val_episodes: int = 100,
        test_episodes: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(val_episodes=val_episodes, test_episodes=test_episodes, **kwargs)
        if min(unroll_steps, truncation) < 1:
            raise ConfigError(f"unroll_steps={unroll_steps} and truncation={truncation} must be at least 1.")
        self.unroll_steps, self.truncation = unroll_steps, truncation

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss (scalar) of one optimizee on one batch. Pure, so that it can be mapped over optimizees."""
        raise NotImplementedError

    def sample(self, keys: Keys, steps: Steps) -> tuple[Params, Batch]:
        """Draw T optimizees.

        Args:
            keys: of the optimizees, `(T,)`.
            steps: for which batches are wanted, `(T, S)`.

        Returns:
            Initial weights `(T, ...)` and batches `(T, S, ...)`.
        """
        raise NotImplementedError

    def dataset(self, split: Split) -> "SegmentDataset":
        if split == "train" and self.unroll_steps % self.truncation:
            raise ConfigError(
                f"unroll_steps={self.unroll_steps} is not a multiple of truncation={self.truncation}; "
                f"take {max(self.unroll_steps // self.truncation, 1) * self.truncation} steps, say."
            )
        return SegmentDataset(self, split)

    def train_ids(self, batch: int, rank: int, share: int) -> Sequence[int]:
        """Segment k of optimizee i has the id `i * segments + k`, where an optimization has so many segments."""
        segments = self.unroll_steps // self.truncation
        unroll, segment = divmod(batch, segments)
        return [i * segments + segment for i in super().train_ids(unroll, rank, share)]

    def facts(self, split: Split) -> dict[str, Any]:
        return {"unroll_steps": self.unroll_steps}

    def describe(self, split: Split) -> str:
        return f"{self.unroll_steps} steps"


class SegmentDataset(TaskDataset):
    """The optimizations of a split: of training, segments; of validation and test, whole optimizations."""

    def __init__(self, data: OptimizeeDataModule, split: Split) -> None:
        self.data, self.split, self.seed = data, split, data.seed

    def __getitems__(self, ids: Sequence[int]) -> Segment:
        whole = self.data.unroll_steps
        length = self.data.truncation if self.split == "train" else whole
        optimizees, part = np.divmod(np.asarray(ids, dtype=np.int64), whole // length)
        start = part * length
        keys = episode_keys(self.seed, STREAM[self.split], optimizees)
        theta, batches = self.data.sample(keys, start[:, None] + np.arange(length + 1))
        return Segment(torch.from_numpy(start), theta, batches)


class QuadraticOptimizees(OptimizeeDataModule):
    """Random quadratic functions `|W theta - y|^2`, `W` and `y` standard normal; theta starts near zero.

    Args:
        dimension: of theta and y.
        start: standard deviation of the initial theta.
        **kwargs: of `OptimizeeDataModule`.
    """

    def __init__(self, dimension: int = 10, start: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dimension < 1:
            raise ConfigError(f"dimension={dimension} must be at least 1.")
        self.dimension, self.start = dimension, start
        self.name = f"{dimension}-D quadratics"

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return (batch.x @ params["theta"] - batch.y).square().sum()

    def sample(self, keys: Keys, steps: Steps) -> tuple[Params, Batch]:
        """`theta` `(T, D)`; the same `x = W` `(T, S, D, D)` and `y` `(T, S, D)` in every step."""
        size, count = self.dimension, steps.shape[1]
        w_key, y_key, theta_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        w_TDD, y_TD, theta_TD = (
            torch.from_numpy(normal(key, numbers)).float()
            for key, numbers in ((w_key, size * size), (y_key, size), (theta_key, size))
        )
        w_TSDD = w_TDD.view(-1, 1, size, size).expand(-1, count, -1, -1)
        return {"theta": self.start * theta_TD}, Batch(w_TSDD, y_TD[:, None].expand(-1, count, -1))
