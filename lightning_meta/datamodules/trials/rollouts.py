"""Tasks of a world as streams of rollout trials, which carry the dice of all that chance will decide in them.

A trial is as frozen as an episode: its task and its dice are a pure function of (seed, split, index). Whoever plays
them, trials of one index are the same throws, so algorithms are compared on common random numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, episode_keys, subkeys, uniform
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.episodes import STREAM, TaskDataset
from lightning_meta.errors import require_at_least
from lightning_meta.worlds import World

TASK, QUERY, SUPPORT = 0, 1, 2  # subkeys of a trial; those of the rounds of support begin with the last
SURE = 1e-7  # dice keep so far from 0 and 1, where a normal number would be infinite


class Dice(NamedTuple):
    """Numbers uniform in (0, 1) that decide H steps of B trajectories: for the world and for who acts.

    Attributes:
        world: `(H, B, D)`.
        actor: `(H, B, A)`.
    """

    world: Tensor
    actor: Tensor


class RolloutTrial(NamedTuple):
    """T tasks of a world, the dice of R rounds of adaptation and those of the query round.

    Attributes:
        task: what the world drew, any pytree `(T, ...)`.
        support: `(T, R, H, B, ...)`; R may be 0.
        query: `(T, H, B, ...)`.
    """

    task: Any
    support: Dice
    query: Dice


class Rollouts(TaskDataModule):
    """Streams of rollout trials of a world.

    Args:
        world: whose tasks they are.
        rounds: R, of adaptation, each of so many trajectories; 0 where one trajectory is all, as with bandits.
        eval_rounds: R in validation and test. None: as in training. The first ones are the same whatever R is.
        trajectories: B, of a round.
        updates: how many meta-batches in a row have the same training trials. More than 1 is for algorithms that learn
            several times from what was played once (`ProMP`).
        **kwargs: of `TaskDataModule`.
    """

    def __init__(
        self,
        world: World,
        rounds: int = 1,
        eval_rounds: int | None = None,
        trajectories: int = 20,
        updates: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(0, rounds=rounds, eval_rounds=eval_rounds)
        require_at_least(1, trajectories=trajectories, updates=updates, horizon=world.horizon)
        self.world, self.trajectories, self.updates = world, trajectories, updates
        self.rounds, self.eval_rounds = rounds, rounds if eval_rounds is None else eval_rounds
        self.name = world.name

    def rounds_of(self, split: Split) -> int:
        return self.rounds if split == "train" else self.eval_rounds

    def dataset(self, split: Split) -> "RolloutDataset":
        return RolloutDataset(self, split)

    def facts(self, split: Split) -> dict[str, Any]:
        sizes = {"horizon": self.world.horizon, "trajectories": self.trajectories}
        return {"world": self.name, "rounds": self.rounds_of(split), **sizes}

    def work(self, split: Split) -> dict[str, int]:
        return {"world_steps": (self.rounds_of(split) + 1) * self.trajectories * self.world.horizon}

    def describe(self, split: Split) -> str:
        rounds = self.rounds_of(split)
        before = f"{rounds} round{'s' * (rounds != 1)} of adaptation, " * bool(rounds)
        return f"{before}{self.trajectories} x {self.world.horizon} steps"


class RolloutDataset(TaskDataset):
    """The rollout trials of a split."""

    def __init__(self, data: Rollouts, split: Split) -> None:
        self.data, self.split, self.seed = data, split, data.seed

    def __getitems__(self, ids: Sequence[int]) -> RolloutTrial:
        data = self.data
        if self.split == "train":
            batches, places = np.divmod(np.asarray(ids), data.meta_batch_size)
            ids = (batches // data.updates * data.meta_batch_size + places).tolist()
        keys = episode_keys(self.seed, STREAM[self.split], ids)
        of_task, of_query = subkeys(keys, (TASK, QUERY)).T
        of_rounds = subkeys(keys, SUPPORT + np.arange(data.rounds_of(self.split)))
        return RolloutTrial(data.world.draw(of_task), self.throw(of_rounds), self.throw(of_query))

    def throw(self, keys: Keys) -> Dice:
        """The dice of a round for each key."""
        of_world, of_actor = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        steps = (self.data.world.horizon, self.data.trajectories)
        return Dice(*(_dice(key, (*steps, size)) for key, size in (
            (of_world, self.data.world.dice), (of_actor, self.data.world.actions.dice)
        )))  # fmt: skip


def _dice(keys: Keys, shape: tuple[int, int, int]) -> Tensor:
    numbers = torch.from_numpy(uniform(keys, int(np.prod(shape)))).float()
    return numbers.clamp_(SURE, 1 - SURE).view(*keys.shape, *shape)
