"""Environments of gymnasium as worlds: what they do is what they do by themselves."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_meta.algorithms import MAMLRL, RL2, Random
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import Rollouts
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import CartPole, Continuous, Discrete, GymWorld
from tests.algorithms.rollout_cases import rollouts
from tests.modules.test_rollout import trainer

TASKS = {"target": [[-1.0, 1.0], [-1.0, 1.0]]}


class Reacher(gymnasium.Env):
    """Go to a target in the plane with moves between -0.5 and 0.5, a little blown about; three steps."""

    observation_space = spaces.Dict({"place": spaces.Box(-9, 9, (2,)), "kind": spaces.Discrete(3)})
    action_space = spaces.Box(np.float32([-0.5, -0.1]), np.float32([0.5, 0.3]))

    def __init__(self, target: Any = (0, 0), wind: float = 0.1) -> None:
        self.target, self.wind = target, wind

    def look(self) -> dict[str, Any]:
        return {"place": self.place.astype(np.float32), "kind": self.left % 3}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.target = (options or {}).get("target", self.target)
        self.place, self.left = self.np_random.normal(size=2), 3
        return self.look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action) and self.left > 0
        self.place = self.place + action + self.wind * self.np_random.normal(size=2)
        self.left -= 1
        reward = -float(np.linalg.norm(self.place - self.target))
        return self.look(), reward, self.left == 0, False, {}


class Long(gymnasium.Wrapper):
    """CartPole with a pole of another length."""

    def __init__(self, length: float) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        inner = self.unwrapped
        inner.length, inner.polemass_length = length, inner.masspole * length


def dice_of(world: GymWorld, trajectories: int = 2) -> Dice:
    trial = rollouts(world, trajectories=trajectories).dataset("train").__getitems__([3])
    return Dice(trial.query.world[0].double(), trial.query.actor[0].double())


@pytest.mark.parametrize("by_reset", [False, True])
def test_it_does_what_the_environment_does(by_reset: bool) -> None:
    """Played by hand, with the same seeds, tasks and actions, which are scaled to the bounds and cut there."""
    world = GymWorld(Reacher, TASKS, horizon=5, by_reset=by_reset, settings={"wind": 0.2})
    assert (world.seen_size, world.actions, world.name) == (5, Continuous(2), "Reacher")
    module = Random(5, Continuous(2))
    module.world, dice = world, dice_of(world)
    task = {"target": torch.tensor([0.3, -0.8])}
    played = module.collect(module.start(dice), task, dice)
    assert played.alive.sum(0).tolist() == [3, 3] and played.rewards[3:].abs().sum() == 0
    low, high = Reacher.action_space.low.astype(float), Reacher.action_space.high.astype(float)
    assert played.actions.abs().max() > 1, "something is to be cut"
    for place in range(2):
        by_hand = Reacher(task["target"].double().numpy(), 0.2)
        seen, _ = by_hand.reset(seed=int(dice.world[0, place, 0].item() * 2**24))
        for step in range(3):
            told = torch.from_numpy(spaces.flatten(by_hand.observation_space, seen))
            torch.testing.assert_close(played.told.seen[step, place], told.double(), rtol=0, atol=0)
            share = (played.actions[step, place].numpy().clip(-1, 1) + 1) / 2
            seen, reward, *_ = by_hand.step((low + (high - low) * share).astype(np.float32))
            assert played.rewards[step, place].item() == reward


def test_a_registered_environment_is_the_tensor_world_of_the_same_physics() -> None:
    """Gymnasium's cart-pole with another length, whose observations are of 32 bits, beside ours."""
    world, ours = GymWorld(Long, {"length": [0.5, 5.0]}), CartPole(horizon=500)
    assert (world.horizon, world.actions, world.seen_size) == (500, Discrete(2), 4)
    module, dice = Random(4, Discrete(2)), dice_of(world)
    module.world = world
    played = module.collect(module.start(dice), {"length": torch.tensor(2.0)}, dice)
    state, alive = played.told.seen[0], torch.ones(2)
    for step in range(500):
        torch.testing.assert_close(
            torch.where(alive[:, None] > 0, state, 0.0),
            torch.where(alive[:, None] > 0, played.told.seen[step], 0.0), rtol=0, atol=1e-5,
        )  # fmt: skip
        assert alive.tolist() == played.alive[step].tolist()
        state, _, over = ours.step(torch.tensor(2.0), state, played.actions[step], dice.world[step])
        alive = alive * ~over
    assert not alive.any()
    assert played.rewards.sum(0).tolist() == played.alive.sum(0).tolist()


def test_trials_are_frozen_and_resume_is_exact() -> None:
    """The same trial alone and beside others, and of a world that was carried to another process."""
    data = Rollouts(GymWorld(Reacher, TASKS, horizon=3), trajectories=2, test_episodes=4)
    module = MAMLRL(5, Continuous(2), hidden=[4])
    module.world = data.world
    together = module.record(data.dataset("test").__getitems__([0, 1, 2]))
    module.world = pickle.loads(pickle.dumps(data.world))
    alone = module.record(data.dataset("test").__getitems__([1]))
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.equal(ours.rewards[0], theirs.rewards[1])
        assert not torch.equal(ours.rewards[0], theirs.rewards[0])


def test_it_is_trained_in_by_default_and_one_task_differs_from_another() -> None:
    world = GymWorld(Reacher, TASKS, horizon=3, by_reset=True)
    targets = world.draw(episode_keys(0, 0, range(500)))["target"]
    assert targets.shape == (500, 2) and targets.abs().max() <= 1 and targets.min() < -0.99 and targets.max() > 0.99
    data, module = rollouts(world), MAMLRL(5, Continuous(2), hidden=[4])
    before = [p.clone() for p in module.parameters()]
    run = trainer(enable_checkpointing=False, max_steps=1, limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_the_environment_of_the_docs_is_played() -> None:
    """By chance, it is too cold or too warm by a sum of random steps, which chance can be told of."""
    page = (Path(__file__).parents[2] / "docs" / "reinforcement.md").read_text()
    (block,) = [part.partition("```")[0] for part in page.split("```python\n")[1:] if "GymWorld(" in part]
    scope: dict[str, Any] = {}
    quiet = 'accelerator="cpu", enable_progress_bar=False, enable_model_summary=False'
    exec(block.replace("pl.Trainer(", f"pl.Trainer({quiet}, "), scope)
    generator = torch.Generator().manual_seed(0)
    leak, heat = (torch.rand(4000, 1, generator=generator) * 1.6 + 0.2, torch.randn(4000, 10, generator=generator))
    start = torch.randn(4000, 1, generator=generator)
    returns = -(start + (heat.clamp(-1, 1) + 1 - leak).cumsum(1)).abs().sum(1)
    assert scope["tested"]["test/return_0"] == pytest.approx(
        returns.mean().item(), abs=2 * scope["tested"]["test/return_0_ci95"]
    )


class Nameless(gymnasium.Env):
    observation_space = spaces.Sequence(spaces.Discrete(2))
    action_space = spaces.Discrete(2)

    def __init__(self, goal: float = 0) -> None: ...


class Handed(Nameless):
    observation_space = spaces.Discrete(4)
    action_space = spaces.Tuple([spaces.Discrete(2)])


class Unsaid(Nameless):
    observation_space = spaces.Discrete(4)


def test_what_cannot_be_a_world_is_told() -> None:
    goal = {"goal": [0, 1]}

    def vectorised() -> None:
        module = RL2(5, Continuous(2), hidden=4, task_mode="vmap")
        module.world = GymWorld(Reacher, TASKS, horizon=3)
        module.measure(rollouts(module.world).dataset("train").__getitems__([0]))

    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: GymWorld("CartPole-v1", goal), r"CartPole-v1 cannot be made with goal=0.0: .*unexpected keyword"),
        (lambda: GymWorld("CartPol-v1", goal), r"CartPol-v1 cannot be made with goal=0.0: .*doesn't exist"),
        (
            lambda: GymWorld("nothing.There", goal),
            r"environment=nothing.There is no id of gymnasium and no class: No mod",
        ),
        (lambda: GymWorld(Unsaid, {}), "tasks names no keyword"),
        (lambda: GymWorld(Unsaid, {"goal": [1, 0]}), r"tasks: goal=\[1, 0\] must be \[low, high\]"),
        (lambda: GymWorld(Unsaid, {"goal": "far"}), r"tasks: goal=far must be \[low, high\]"),
        (lambda: GymWorld(Unsaid, goal), r"Unsaid does not say how long an episode is; set world.horizon"),
        (lambda: GymWorld(Unsaid, goal, horizon=0), "horizon=0 must be at least 1"),
        (lambda: GymWorld(Handed, goal, horizon=3), r"actions of Tuple\(Discrete\(2\)\) cannot be taken; wrap"),
        (lambda: GymWorld(Nameless, goal, horizon=3), r"observations of Sequence.* are not of one length; wrap"),
        (vectorised, "Reacher is stepped task by task; set model.task_mode to auto or loop"),
    ]
    for attempt, message in refusals:
        with pytest.raises(ConfigError, match=message) as told:
            attempt()
        assert "\n" not in str(told.value)
    assert GymWorld("tests.worlds.test_gym_world.Unsaid", goal, horizon=3).seen_size == 4
