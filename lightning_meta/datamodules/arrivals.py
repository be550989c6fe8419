"""Training tasks that arrive one after another: at any time there are those that have come, and their own examples.

Finn, Rajeswaran, Kakade, Levine: "Online Meta-Learning" (2019), arXiv:1902.08438. An algorithm that meta-trains on all
tasks so far follows the meta-leader (FTML); validation and test are tasks that are yet to come.

Only the source of training episodes changes. Every algorithm learns in this way, and a run goes on after an
interruption as if there had been none: what has come is a function of the number of the meta-batch.

Deviations: in the paper a task is met with few examples, which grow in number before it joins the others; here it joins
them with all that it brings. New tasks are measured on validation and test tasks, many at each time and not one alone:
in the paper's streams as here, any of them could be the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys
from lightning_meta.datamodules.episodes import STREAM, TaskSource
from lightning_meta.errors import ConfigError, require_at_least

TASK, EXAMPLES = 2000, 2001  # of an episode's keys: which task it is of, and which of its examples; others are smaller


@dataclass(frozen=True)
class Arrivals:
    """When training tasks come, and what each of them brings.

    Args:
        every: meta-batches from one arrival to the next. The first task is there from the start.
        examples: that a task brings of each class, support and query examples of its episodes alike. They never change.
        tasks: how many come. None: one after another without end.
        learned_at: what a metric must reach on a new task for it to count as learned; see `ExamplesNeeded`.
    """

    every: int = 100
    examples: int = 20
    tasks: int | None = None
    learned_at: float | None = None

    def __post_init__(self) -> None:
        require_at_least(1, **{f"arrivals.{name}": getattr(self, name) for name in ("every", "examples", "tasks")})

    def here(self, batches: np.ndarray) -> np.ndarray:
        """How many tasks there are in meta-batches by number, counted from the start of training."""
        come = batches // self.every + 1
        return come if self.tasks is None else np.minimum(come, self.tasks)


@dataclass(frozen=True)
class ArrivingSource(TaskSource):
    """Episodes of the tasks that are there: any of them, its examples shared out anew between support and query.

    Attributes:
        source: of the tasks.
        arrivals: when they come.
        meta_batch_size: how many episodes there are at a time.
    """

    source: TaskSource
    arrivals: Arrivals
    meta_batch_size: int

    def check(self, shape: EpisodeShape) -> None:
        if shape.k_shot + shape.n_query > self.arrivals.examples:
            raise ConfigError(
                f"an episode takes k_shot={shape.k_shot} + n_query={shape.n_query} examples of a class, but a task "
                f"that arrives brings {self.arrivals.examples}; raise data.arrivals.examples."
            )
        self.source.check(self._brought(shape))

    def _brought(self, shape: EpisodeShape) -> EpisodeShape:
        """All examples of a task as one episode."""
        return shape._replace(n_query=self.arrivals.examples - shape.k_shot)

    def draw_episodes(self, seed: int, split: Split, ids: Sequence[int], shape: EpisodeShape) -> tuple[Keys, Any]:
        keys = episode_keys(seed, STREAM[split], ids)
        task_key, example_key = np.moveaxis(subkeys(keys, [TASK, EXAMPLES]), -1, 0)
        here_T = self.arrivals.here(np.asarray(ids) // self.meta_batch_size)
        task_T = choose(task_key, here_T, 1)[..., 0]
        _, drawn = self.source.draw_episodes(seed, split, task_T.tolist(), self._brought(shape))
        example_TN = subkeys(example_key, range(shape.n_way))
        return keys, (drawn, torch.from_numpy(choose(example_TN, self.arrivals.examples, shape.k_shot + shape.n_query)))

    def make(self, drawn: tuple[Any, Tensor], shape: EpisodeShape) -> Episode:
        of_source, places_TNM = drawn
        support, query = self.source.make(of_source, self._brought(shape))
        n, k = shape.n_way, shape.k_shot
        parts = []
        for first, others in zip(support, query, strict=True):
            held_TNE = torch.cat([part.unflatten(1, (n, -1)) for part in (first, others)], 2)
            places = places_TNM.to(held_TNE.device)
            tasks, classes = (torch.arange(size, device=places.device) for size in places.shape[:2])
            parts.append(held_TNE[tasks[:, None, None], classes[:, None], places])
        return Episode(
            Batch(*(part[:, :, :k].flatten(1, 2) for part in parts)),
            Batch(*(part[:, :, k:].flatten(1, 2) for part in parts)),
        )

    def unembedded(self) -> TaskSource:
        return replace(self, source=self.source.unembedded())

    def to(self, device: torch.device) -> "ArrivingSource":
        return replace(self, source=self.source.to(device))
