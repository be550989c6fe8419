"""The half-cheetah, step by step, beside gymnasium's."""

import pickle
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta import extras
from lightning_meta.algorithms import MAMLRL
from lightning_meta.core.sampling import episode_keys
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Continuous, HalfCheetahDirection, HalfCheetahVelocity
from tests.algorithms.rollout_cases import rollouts

needs_mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason="mujoco is not installed")


def states(world: Any, count: int) -> Tensor:
    """In the middle of runs, some of which have fallen on their back."""
    generator = torch.Generator().manual_seed(0)
    state = world.start(None, torch.rand(count, 18, generator=generator))
    for _ in range(30):
        pushes = 3 * torch.randn(count, 6, generator=generator)
        state, _, over = world.step(torch.tensor(1.0), state, pushes, torch.zeros(count, 1))
        assert not over.any()
    return state


@needs_mujoco
@pytest.mark.filterwarnings("ignore:.*mujoco.*")
def test_a_step_is_that_of_gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("imageio") is None:
        monkeypatch.setitem(sys.modules, "imageio", ModuleType("imageio"))  # with which gymnasium would write films
    oracle = gymnasium.make("HalfCheetah-v5").unwrapped
    world = HalfCheetahDirection(control_cost=0.1)
    before = states(world, 100)
    actions = 2 * torch.randn(100, 6, generator=torch.Generator().manual_seed(1)).double()
    after, rewards, _ = world.step(torch.tensor(1.0), before, actions, torch.zeros(100, 1).double())
    for place in range(100):
        oracle.set_state(before[place, 1:10].numpy(), before[place, 10:].numpy())
        seen, reward, over, _, _ = oracle.step(actions[place].clamp(-1, 1).numpy())
        np.testing.assert_allclose(world.seen(after)[place], seen, rtol=1e-12, atol=1e-12)
        assert rewards[place].item() == pytest.approx(reward, abs=1e-12) and not over


@needs_mujoco
def test_all_tasks_at_once_are_the_tasks_one_by_one_on_any_number_of_threads() -> None:
    one, two = HalfCheetahDirection(), HalfCheetahDirection(threads=2)
    before, actions = states(one, 6).view(2, 3, 19), torch.randn(3, 6).double()
    tasks, dice = torch.tensor([1.0, -1.0]), torch.zeros(3, 18).double()
    together = torch.vmap(lambda task, state: two.step(task, state, actions, dice))(tasks, before)
    for place in range(2):
        alone = one.step(tasks[place], before[place], actions, dice)
        for ours, theirs in zip(alone, together, strict=True):
            assert torch.equal(ours, theirs[place])
    twisted = torch.vmap(lambda state: two.step(tasks[0], state, actions, dice)[0], in_dims=2)(before.permute(1, 2, 0))
    assert torch.equal(twisted[1], together[0][1])
    assert pickle.loads(pickle.dumps(one)).horizon == 200


@needs_mujoco
def test_a_run_starts_near_rest_and_pays_what_was_wished_for() -> None:
    world, wished = HalfCheetahDirection(), HalfCheetahVelocity(fastest=3.0)
    directions = world.draw(episode_keys(0, 0, range(400)))
    speeds = wished.draw(episode_keys(0, 0, range(400)))
    assert set(directions.tolist()) == {-1, 1} and abs(directions.mean()) < 0.15
    assert 0 <= speeds.min() < 0.05 and 2.95 < speeds.max() < 3
    state = world.start(None, torch.rand(2000, 18))
    assert state[:, 1:10].abs().max() <= 0.1 and state[:, 10:].std().item() == pytest.approx(0.1, rel=0.05)
    after, forwards, _ = world.step(torch.tensor(1.0), state, torch.zeros(2000, 6), torch.zeros(2000, 1))
    _, backwards, _ = world.step(torch.tensor(-1.0), state, torch.zeros(2000, 6), torch.zeros(2000, 1))
    _, paid, _ = wished.step(torch.tensor(0.4), state, torch.zeros(2000, 6), torch.zeros(2000, 1))
    speed = (after[:, 1] - state[:, 1]) / 0.05
    torch.testing.assert_close(forwards.double(), speed, rtol=0, atol=1e-6)
    assert torch.equal(backwards, -forwards)
    torch.testing.assert_close(paid.double(), -(speed - 0.4).abs(), rtol=0, atol=1e-6)
    _, cost, _ = world.step(torch.tensor(0.0), state, torch.full((2000, 6), 5.0), torch.zeros(2000, 1))
    torch.testing.assert_close(cost, torch.full((2000,), -0.05 * 6))


@needs_mujoco
def test_a_policy_adapts_in_it_and_it_is_drawn() -> None:
    world = HalfCheetahDirection(horizon=5)
    data, module = rollouts(world, rounds=1), MAMLRL(17, Continuous(6), hidden=[4])
    module.world = world
    loss = module.measure(data.dataset("train").__getitems__([0, 1]))[0]["loss"].mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    picture = world.picture(torch.tensor(1.0), world.start(None, torch.rand(1, 18)))
    assert picture.shape == (160, 320, 3) and (picture == [0, 114, 178]).all(-1).sum() > 500


def test_a_missing_mujoco_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "RequirementCache", lambda *_: False)
    with pytest.raises(ConfigError, match=r"^HalfCheetahVelocity needs mujoco>=\S+, .* requirements-mujoco\.txt$"):
        HalfCheetahVelocity()
