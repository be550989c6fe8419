"""A source of tasks made of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, episode_keys, subkeys, uniform
from lightning_meta.datamodules.episodes import STREAM, TaskSource
from lightning_meta.errors import UserError

SOURCE = 5  # of an episode's keys, that of its source; see `SHAPE` in datamodules/variable.py


@dataclass(frozen=True)
class MixedSource(TaskSource):
    """Episodes of several sources.

    Attributes:
        whole: makes the episodes of all of them.
        views: draw the episodes of each, by name.
        weights: of the sources, in training.
        first_labels: what is added to the labels of each: not 0 where classes are numbered through.
    """

    whole: TaskSource
    views: Mapping[str, TaskSource]
    weights: Sequence[float]
    first_labels: Sequence[int]

    def check(self, shape: EpisodeShape) -> None:
        for name, view in self.views.items():
            try:
                view.check(shape)
            except UserError as error:
                raise type(error)(f"{name}: {error}") from error

    def draw_episodes(self, seed: int, split: Split, ids: Sequence[int], shape: EpisodeShape) -> tuple[Keys, Any]:
        """In validation and test the sources take turns, and each plays its own frozen list."""
        if split == "train":
            keys = episode_keys(seed, STREAM[split], ids)
            return keys, self.draw(keys, shape)
        numbers_T = np.asarray(ids)
        keys = episode_keys(seed, STREAM[split], numbers_T // len(self.views))
        return keys, self._draw(keys, numbers_T % len(self.views), shape)

    def draw(self, keys: Keys, shape: EpisodeShape) -> Any:
        ends = np.cumsum(self.weights) / sum(self.weights)
        unit_T = uniform(subkeys(keys, [SOURCE])[..., 0], 1)[..., 0]
        return self._draw(keys, np.searchsorted(ends[:-1], unit_T, side="right"), shape)

    def _draw(self, keys: Keys, source_T: np.ndarray, shape: EpisodeShape) -> Any:
        """What the source of each episode draws, in the order of the episodes; padded with -1 to the largest."""
        parts = []
        for number, view in enumerate(self.views.values()):
            chosen = np.flatnonzero(source_T == number)
            if len(chosen):
                drawn = view.draw(keys[chosen], shape)
                labels = drawn.labels + self.first_labels[number] * (drawn.labels >= 0)
                parts.append((torch.from_numpy(chosen).to(labels.device), drawn._replace(labels=labels)))
        fields = []
        for leaves in zip(*(drawn for _, drawn in parts), strict=True):
            largest = [max(sizes) for sizes in zip(*(leaf.shape[1:] for leaf in leaves), strict=True)]
            field = leaves[0].new_full((len(keys), *largest), -1)
            for (places, _), leaf in zip(parts, leaves, strict=True):
                field[(places, *(slice(size) for size in leaf.shape[1:]))] = leaf
            fields.append(field)
        return type(parts[0][1])(*fields)

    def make(self, drawn: Any, shape: EpisodeShape) -> Any:
        return self.whole.make(drawn, shape)

    def unembedded(self) -> TaskSource:
        plain = self.whole.unembedded()
        return self if plain is self.whole else replace(self, whole=plain)
