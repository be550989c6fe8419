"""A world: a distribution of tasks, and what happens in one of them, as functions without state.

All that chance decides comes with the call, as dice: numbers uniform in (0, 1). So a rollout is a function of who acts,
of the task and of the dice, and it can be mapped over tasks, repeated, and shared out over processes.

Shapes: `T` tasks, `B` trajectories of one task, `O` numbers that are seen, `D` dice of a step.
"""

from typing import Any, Literal

import numpy as np
from torch import Tensor

from lightning_meta.core.sampling import Keys
from lightning_meta.errors import ConfigError
from lightning_meta.worlds.actions import Actions


class World:
    """Base of worlds. A subclass writes all of it, but `best` where nobody knows how to act best.

    `start`, `seen` and `step` run under vmap: no `.item()`, no branch on values.

    Attributes:
        name: in results.
        horizon: steps of a trajectory, at most.
        seen_size: O.
        actions: which ones there are.
        dice: D, how many numbers chance decides of a step; at the start it has those of the first step.
        task_mode: how tasks are mapped where `auto` is asked for: `loop` where one cannot be stepped beside another.
    """

    name: str
    horizon: int
    seen_size: int
    actions: Actions
    dice: int
    task_mode: Literal["vmap", "loop"] = "vmap"

    def draw(self, keys: Keys) -> Any:
        """One task for each key: a pytree of tensors with a leading axis T, such as goals `(T, 2)`."""
        raise NotImplementedError

    def start(self, task: Any, dice: Tensor) -> Any:
        """The states `(B, ...)`, any pytree, in which trajectories begin; `dice` are `(B, D)`."""
        raise NotImplementedError

    def seen(self, state: Any) -> Tensor:
        """What is seen of the states, `(B, O)`."""
        raise NotImplementedError

    def step(self, task: Any, state: Any, action: Tensor, dice: Tensor) -> tuple[Any, Tensor, Tensor]:
        """The next states, the rewards `(B,)`, and whether it was the last step of the trajectory `(B,)`, 0 or 1."""
        raise NotImplementedError

    def best(self, task: Any, seen: Tensor, left: int) -> Tensor:
        """The actions `(B, ...)` of somebody who knows the task, with so many steps left. `Oracle` and teachers ask."""
        raise ConfigError(f"nobody knows how to act best in {type(self).__name__}; write its method `best`.")

    def with_pictures(self) -> "World":
        """The same world, of which `picture` is to be asked."""
        return self

    def picture(self, task: Any, state: Any) -> np.ndarray | None:
        """What the first of the states `(B, ...)` looks like, `(height, width, 3)` in 0..255; None: nobody drew it."""
        return None
