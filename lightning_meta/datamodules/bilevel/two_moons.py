"""Two half circles that lie in one another, a few of their points labelled: drawn, no download."""

from math import pi
from typing import Any

import numpy as np
import torch

from lightning_meta.core import Batch
from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, normal, subkeys, uniform
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Steps
from lightning_meta.errors import ConfigError, require_at_least

ROLES = 2000  # the stream of random numbers that says where points are; see `held_out_images.py`
ROLE = {"support": 0, "held_out": 1, "val": 2, "test": 3}


class TwoMoons(BilevelDataModule):
    """Points of two classes: `(cos t, sin t)` and `(1 - cos t, 0.5 - sin t)` for t in [0, pi], under normal noise.

    What is held out are the labelled points. The points to learn from have their true labels, which an algorithm that
    learns from unlabelled ones does not read.

    Args:
        support_per_class: points to learn from.
        held_out_per_class, val_per_class, test_per_class: points of each class with labels.
        noise: its standard deviation.
        batch_size: of an inner step, drawn with replacement.
        query_size: held-out points in an outer update, drawn without. None: all of them.
        **kwargs: of `BilevelDataModule`.
    """

    n_classes = 2

    def __init__(
        self,
        support_per_class: int = 1000,
        held_out_per_class: int = 3,
        val_per_class: int = 100,
        test_per_class: int = 500,
        noise: float = 0.1,
        batch_size: int = 100,
        query_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"support": support_per_class, "held_out": held_out_per_class}
        self.sizes = {**sizes, "val": val_per_class, "test": test_per_class}
        require_at_least(1, **{f"{role}_per_class": size for role, size in self.sizes.items()}, batch_size=batch_size)
        if noise < 0:
            raise ConfigError(f"noise={noise} must not be negative.")
        if query_size is not None and not 1 <= query_size <= 2 * held_out_per_class:
            raise ConfigError(
                f"query_size={query_size}, but {2 * held_out_per_class} points are held out; lower it or raise "
                "held_out_per_class."
            )
        self.noise, self.batch_size, self.query_size = noise, batch_size, query_size

    def points(self, role: str) -> Batch:
        """All points of a role, class by class: `(E, 2)` and `(E,)`."""
        size = self.sizes[role]
        angle_key, noise_key = subkeys(subkeys(episode_keys(self.seed, ROLES, [0]), [ROLE[role]])[:, 0], [0, 1])[0]
        angles_2E = uniform(subkeys(angle_key, [0, 1]), size, 0, pi)
        x_2E = np.array([np.cos(angles_2E[0]), 1 - np.cos(angles_2E[1])])
        y_2E = np.array([np.sin(angles_2E[0]), 0.5 - np.sin(angles_2E[1])])
        exact_E2 = np.stack([x_2E.ravel(), y_2E.ravel()], axis=1)
        noise_E2 = normal(noise_key[None], exact_E2.size).reshape(exact_E2.shape)
        points = torch.from_numpy(exact_E2 + self.noise * noise_E2).float()
        return Batch(points, torch.arange(2).repeat_interleave(size))

    def steps(self, keys: Keys, steps: Steps) -> tuple[Batch, torch.Tensor]:
        points = self.points("support")
        places_TSB = torch.from_numpy((uniform(subkeys(keys, steps), self.batch_size) * len(points.y)).astype(np.int64))
        batch = Batch(points.x[places_TSB], points.y[places_TSB])
        return batch, torch.ones_like(batch.y, dtype=torch.bool)

    def held_out(self, keys: Keys) -> Batch:
        points = self.all_held_out()
        there = len(points.y)
        if self.query_size is None:
            return Batch(*(part.expand(len(keys), *part.shape) for part in points))
        places_TQ = torch.from_numpy(choose(keys, there, self.query_size))
        return Batch(points.x[places_TQ], points.y[places_TQ])

    def learned_from(self) -> Batch:
        return self.points("support")

    def all_held_out(self) -> Batch:
        return self.points("held_out")

    def judges(self, split: Split) -> Batch:
        points = self.points(split)
        key = subkeys(episode_keys(self.seed, ROLES, [0]), [10**6])[:, 0]
        order = torch.from_numpy(subkeys(key, np.arange(len(points.y)))[0].argsort(kind="stable"))
        return Batch(points.x[order], points.y[order])

    def facts(self, split: Split) -> dict[str, Any]:
        mine = {"classes": 2, "support": 2 * self.sizes["support"], "held_out": 2 * self.sizes["held_out"]}
        return {
            **super().facts(split), **mine, "noise": self.noise, "batch_size": self.batch_size,
            "judged_on": 2 * self.sizes[split],
        }  # fmt: skip

    def describe(self, split: Split) -> str:
        support, held_out = 2 * self.sizes["support"], 2 * self.sizes["held_out"]
        judged = f"judged on {2 * self.sizes[split]}"
        return f"{support} points to learn from, {held_out} held out, {judged}, {super().describe(split)}"
