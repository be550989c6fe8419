"""Any environment of gymnasium as a world: one that was written for other libraries, or a simulator.

What it has inside is not ours to know, so it is stepped, not calculated: an instance for each trajectory, task by task.
Its dice are seeds. A trial is as frozen as the environment is: it must do the same after the same `reset(seed=...)`.

Shapes: `B` trajectories, `O` numbers that are seen.
"""

from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys, subkeys, uniform
from lightning_meta.core.task_map import active_transforms
from lightning_meta.errors import ConfigError, reason, require_at_least
from lightning_meta.worlds.actions import Actions, Continuous, Discrete
from lightning_meta.worlds.base import World

SEEDS = 2**24  # of an episode: as many as a die of 32 bits can tell apart


class Episodes(NamedTuple):
    """B instances in the middle of an episode, what is seen of them `(B, O)`, and whether they have ended."""

    environments: list[Any]
    seen: Tensor
    over: list[bool]


class GymWorld(World):
    """Instances of an environment, whose tasks are values of some of its keywords.

    Observations are made flat. A `Box` of actions becomes `Continuous`: where it has bounds, -1 and 1 are these, and
    actions beyond are cut. `Discrete` ones are counted from 0.

    Args:
        environment: its id, as `gymnasium.make` takes it, or a class or function that makes it, or that one's name,
            `my_file.Reacher`.
        tasks: for each keyword what a task draws for it, uniformly: of `[low, high]` a number, of several such pairs
            an array.
        horizon: steps of an episode at most. None: what the environment is registered with.
        by_reset: hand them to `reset(options=...)`; else the environment is made with them.
        settings: keywords that all tasks share.
    """

    dice, task_mode = 1, "loop"

    def __init__(
        self,
        environment: str | Callable[..., Any],
        tasks: Mapping[str, Sequence[Any]],
        horizon: int | None = None,
        by_reset: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.by_reset = dict(settings or {}), by_reset
        self._environment, self._make = environment, _maker(environment)
        self.name = environment if isinstance(environment, str) else environment.__name__
        self.ranges = {keyword: _range(keyword, given) for keyword, given in tasks.items()}
        if not tasks:
            raise ConfigError("tasks names no keyword, so that all tasks would be the same; write {length: [0.5, 5]}.")
        self._task: dict[str, Any] | None = None
        self._instances: list[Any] = []
        first = self._instances_for(1, {name: low_high[..., 0] for name, low_high in self.ranges.items()})[0]
        self.actions, self._bounds = _actions(first.action_space)
        self._first_action = int(getattr(first.action_space, "start", 0))
        self._metadata = first.metadata
        self._shape, self._dtype = first.action_space.shape, first.action_space.dtype
        self.seen_size = _seen_size(first.observation_space)
        steps = getattr(first.spec, "max_episode_steps", None) if horizon is None else horizon
        if steps is None:
            raise ConfigError(f"{self.name} does not say how long an episode is; set world.horizon.")
        require_at_least(1, horizon=steps)
        self.horizon = steps

    def draw(self, keys: Keys) -> dict[str, Tensor]:
        """Values of the keywords, `(T, ...)` each."""
        of_keywords, task = subkeys(keys, range(len(self.ranges))).T, {}
        for key, (name, low_high) in zip(of_keywords, self.ranges.items(), strict=True):
            low, high = low_high[..., 0], low_high[..., 1]
            unit = uniform(key, low.size).reshape(len(key), *low.shape)
            task[name] = torch.from_numpy(low + (high - low) * unit).float()
        return task

    def start(self, task: dict[str, Tensor], dice: Tensor) -> Episodes:
        """Episodes that were begun for another task, or before, are no more: their instances are used again."""
        if active_transforms():
            raise ConfigError(f"{self.name} is stepped task by task; set model.task_mode to auto or loop.")
        values = {name: value.double().cpu().numpy()[()] for name, value in task.items()}
        instances, rows = self._instances_for(len(dice), values), []
        for instance, die in zip(instances, dice[:, 0].tolist(), strict=True):
            observation, _ = instance.reset(seed=int(die * SEEDS), options=values if self.by_reset else None)
            rows.append(_flat(instance, observation))
        return Episodes(instances, torch.from_numpy(np.stack(rows)).to(dice), [False] * len(rows))

    def seen(self, state: Episodes) -> Tensor:
        return state.seen

    def step(
        self, task: dict[str, Tensor], state: Episodes, action: Tensor, dice: Tensor
    ) -> tuple[Episodes, Tensor, Tensor]:
        rows, rewards, over = [*state.seen], [0.0] * len(dice), [*state.over]
        for place, (instance, taken) in enumerate(zip(state.environments, self._taken(action), strict=True)):
            if over[place]:
                continue
            observation, rewards[place], terminated, truncated, _ = instance.step(taken)
            rows[place] = torch.from_numpy(_flat(instance, observation)).to(dice)
            over[place] = bool(terminated or truncated)
        ended = torch.tensor(over, device=dice.device)
        return Episodes(state.environments, torch.stack(rows), over), dice.new_tensor(rewards), ended

    def with_pictures(self) -> World:
        """With the environment's render mode `rgb_array`, where it has one."""
        if "rgb_array" not in self._metadata.get("render_modes", ()):
            return self
        settings = self.settings | {"render_mode": "rgb_array"}
        ranges = {name: low_high.tolist() for name, low_high in self.ranges.items()}
        return GymWorld(self._environment, ranges, self.horizon, self.by_reset, settings)

    def picture(self, task: dict[str, Tensor], state: Episodes) -> np.ndarray | None:
        first = state.environments[0]
        return np.asarray(first.render()) if getattr(first, "render_mode", None) == "rgb_array" else None

    def _taken(self, action: Tensor) -> list[Any]:
        """Actions `(B, ...)` as the environment takes them."""
        if isinstance(self.actions, Discrete):
            return [self._dtype.type(one + self._first_action) for one in action.tolist()]
        low, high = self._bounds
        free = action.double().cpu().numpy()
        bounded = np.isfinite(high - low)
        least, span = np.where(bounded, low, 0), np.where(bounded, high - low, 0)
        chosen = np.where(bounded, least + span * (free.clip(-1, 1) + 1) / 2, free.clip(low, high))
        return [*chosen.reshape(-1, *self._shape).astype(self._dtype)]

    def _instances_for(self, count: int, task: dict[str, Any]) -> list[Any]:
        """So many of them, made for a task; they are kept until another one asks for its own."""
        made_with = {} if self.by_reset else task
        if self._task is None or any(not np.array_equal(made_with[name], self._task[name]) for name in made_with):
            for instance in self._instances:
                instance.close()
            self._task, self._instances = made_with, []
        while len(self._instances) < count:
            self._instances.append(self._made(made_with))
        return self._instances[:count]

    def _made(self, task: dict[str, Any]) -> Any:
        try:
            return self._make(**self.settings, **task)
        except Exception as error:
            words = ", ".join(f"{name}={value}" for name, value in (self.settings | task).items())
            raise ConfigError(f"{self.name} cannot be made with {words or 'no settings'}: {reason(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Instances are not carried to other processes."""
        return self.__dict__ | {"_task": None, "_instances": []}


def _maker(environment: str | Callable[..., Any]) -> Callable[..., Any]:
    """What makes an instance of keywords."""
    if not isinstance(environment, str):
        return environment
    import gymnasium  # here, where it is asked for: it takes a while

    if ":" in environment or environment in gymnasium.registry or "." not in environment:
        return lambda **settings: gymnasium.make(environment, **settings)
    try:
        return resolve_name(environment)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"environment={environment} is no id of gymnasium and no class: {reason(error)}") from error


def _range(keyword: str, given: Sequence[Any]) -> Any:
    """`(2,)` for a number or `(n, 2)` for an array: the least and the largest value."""
    try:
        low_high = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        low_high = np.zeros(0)
    if low_high.ndim not in (1, 2) or low_high.shape[-1] != 2 or (low_high[..., 0] > low_high[..., 1]).any():
        raise ConfigError(f"tasks: {keyword}={given} must be [low, high], or several such pairs for an array.")
    return low_high


def _actions(space: Any) -> tuple[Actions, Any]:
    """Of a space of gymnasium, and the bounds of a `Box`, `(n,)` each."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), None
    if isinstance(space, spaces.Box):
        low, high = (bound.astype(np.float64).flatten() for bound in (space.low, space.high))
        return Continuous(low.size), (low, high)
    raise ConfigError(f"actions of {space} cannot be taken; wrap the environment so that they are Discrete or a Box.")


def _seen_size(space: Any) -> int:
    from gymnasium.spaces.utils import flatdim

    try:
        return flatdim(space)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"observations of {space} are not of one length; wrap the environment so that they are."
        ) from error


def _flat(instance: Any, observation: Any) -> Any:
    from gymnasium.spaces.utils import flatten

    return np.asarray(flatten(instance.observation_space, observation), dtype=np.float64)
