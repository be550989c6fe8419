"""Manipulate objects with the arm of Meta-World, where a task is the place of an object and of a goal (ML1).

Yu, Quillen, He, Julian, Narayan, Shively, Bellathur, Hausman, Finn, Levine: "Meta-World: A Benchmark and Evaluation for
Multi-Task and Meta Reinforcement Learning" (2019), arXiv:1910.10897.

Deviations: tasks are drawn without end, by Meta-World's own procedure; ML1 has 50 to train on and 50 to test with. Its
reward is what counts here; whether the goal was reached is not logged.
"""

import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys
from lightning_meta.errors import ConfigError
from lightning_meta.extras import check, need
from lightning_meta.worlds.gym_world import GymWorld

LONGEST = 500  # steps, after which Meta-World wants to be reset
SEEDS = 2**31


class MetaWorld(GymWorld):
    """One of its 50 kinds of tasks. The goal is not seen.

    All trajectories of a task start alike: there is no chance but that of the actor.

    Args:
        kind: as Meta-World calls it, `reach-v3`.
        horizon: steps of an episode, at most 500.
    """

    def __init__(self, kind: str = "reach-v3", horizon: int = 150) -> None:
        check("metaworld", type(self).__name__)
        if horizon > LONGEST:
            raise ConfigError(f"horizon={horizon} is too long: an episode of Meta-World has {LONGEST} steps at most.")
        self.kind = kind
        self._places = _opened(kind)  # draws places of things
        space = self._places._random_reset_space
        super().__init__(
            "lightning_meta.worlds.meta_world.made",
            {"place": np.stack([space.low, space.high], axis=-1).tolist()},
            horizon,
            settings={"kind": kind},
        )
        self.name = f"MetaWorld {kind}"

    def draw(self, keys: Keys) -> dict[str, Tensor]:
        """Places of things `(T, P)`, none of which is too near to another."""
        return {"place": torch.from_numpy(np.stack([self._place(key) for key in keys.tolist()])).float()}

    def _place(self, key: int) -> Any:
        self._places.seed(key % SEEDS)
        self._places.reset()
        return self._places._last_rand_vec

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_places": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._places = _opened(self.kind)


def made(kind: str, place: Any, render_mode: str | None = None) -> Any:
    """An environment of Meta-World whose task is set; it may look at the goal, its policy may not."""
    need("metaworld", "MetaWorld")
    from metaworld.types import Task

    cls = _kinds()[kind]
    environment = cls(render_mode=render_mode)
    data = {"env_cls": cls, "rand_vec": np.asarray(place, dtype=np.float64), "partially_observable": True}
    environment.set_task(Task(kind, pickle.dumps(data)))
    return environment


def _opened(kind: str) -> Any:
    """An environment that draws a new place of things with each reset."""
    need("metaworld", "MetaWorld")
    if kind not in _kinds():
        raise ConfigError(f"kind={kind} is none of Meta-World's; there are: {', '.join(sorted(_kinds()))}.")
    environment = _kinds()[kind]()
    environment._freeze_rand_vec, environment.seeded_rand_vec, environment._set_task_called = False, True, True
    return environment


def _kinds() -> dict[str, Any]:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return dict(ALL_V3_ENVIRONMENTS)
