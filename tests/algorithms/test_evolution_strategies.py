"""Evolution strategies: slopes of returns that are known in closed form, and learners that need nothing else."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_meta.algorithms import MAMLRL, RL2, EvolutionStrategies, Random
from lightning_meta.compat import tree_map
from lightning_meta.core import TaskOutput
from lightning_meta.core.sampling import Keys, uniform
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import RolloutModule
from lightning_meta.worlds import Continuous, Discrete, World
from tests.algorithms.rollout_cases import arms, navigation

ROLLOUTS = {
    "evolution-strategies": (
        lambda **kw: EvolutionStrategies(RL2(1, Discrete(3), hidden=3), pairs=3, earns="total_return", **kw), arms,
    ),
    "es-maml": (
        lambda **kw: EvolutionStrategies(MAMLRL(2, Continuous(2), hidden=[4]), pairs=2, deviation=0.05, **kw),
        navigation,
    ),
}  # fmt: skip


class Bowl(World):
    """One step, which costs the squared distance from a place, and pays a quarter of its cube."""

    name, horizon, seen_size, actions, dice = "bowl", 1, 1, Continuous(2), 1

    def draw(self, keys: Keys) -> Tensor:
        return torch.from_numpy(uniform(keys, 2, -1, 1)).float() + 2

    def start(self, task: Tensor, dice: Tensor) -> Tensor:
        return torch.zeros_like(dice)

    def seen(self, state: Tensor) -> Tensor:
        return state

    def step(self, task: Tensor, state: Tensor, action: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        away = action - task
        return state, -away.square().sum(-1), torch.ones_like(state[:, 0])


class Still(RolloutModule):
    """Does what its parameter says; its own loss says nothing."""

    def __init__(self) -> None:
        super().__init__(1, Continuous(2))
        self.place = nn.Parameter(torch.tensor([0.5, -0.25]))

    def start(self, dice: Any) -> Tensor:
        return self.place

    def act(self, place: Tensor, memory: Any, told: Any, dice: Tensor) -> tuple[Tensor, Any]:
        return place.expand(len(dice), 2), memory

    def query_loss(self, adapted: Any, query: Any) -> TaskOutput:
        return TaskOutput(query.rewards.sum() * 0, query.rewards.sum(0))


def bowl(**sizes: int) -> Rollouts:
    return Rollouts(Bowl(), rounds=0, trajectories=1, **sizes)


def test_the_slope_is_that_of_the_return() -> None:
    """Of a square the disturbance along a pair is the slope, whatever its size; directions average to the gradient."""
    module = EvolutionStrategies(Still(), pairs=20_000, deviation=0.7).double()
    module.world = Bowl()
    trials = tree_map(lambda leaf: leaf.double(), bowl().dataset("train").__getitems__([3]))
    loss = module.measure(trials)[0]["loss"]
    expected = -2 * (module.learner.place.detach() - trials.task[0])
    torch.testing.assert_close(loss[0].detach(), (expected / 2).square().sum())
    loss.mean().backward()
    torch.testing.assert_close(-module.learner.place.grad, expected, rtol=0, atol=4 * 5.0 / 20_000**0.5)


def test_a_pair_is_two_whole_trials_with_the_same_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    """ES-MAML along a known direction, played by hand: how the learner adapts is part of what it earns."""
    torch.manual_seed(0)
    monkeypatch.setattr(
        "lightning_meta.algorithms.reinforcement.evolution_strategies.normal",
        lambda key, *shape, dtype: torch.full(shape, 0.3, dtype=dtype),
    )
    module, data = ROLLOUTS["es-maml"][0]().double(), navigation()
    module.world = data.world
    task, support, query = (
        tree_map(lambda leaf: leaf[0].double(), part) for part in data.dataset("train").__getitems__([1])
    )
    theta, earned = {name: value.detach() for name, value in module.named_parameters()}, []
    for side in (0.05, -0.05):
        learner = MAMLRL(2, Continuous(2), hidden=[4]).double()
        learner.world = data.world
        learner.load_state_dict({name.removeprefix("learner."): value + side * 0.3 for name, value in theta.items()})
        trial = (task, support, query)
        unadapted, adapted = (learner.play_task(*trial).logs[name] for name in ("return_0", "return_2"))
        assert unadapted != adapted
        earned.append(adapted.detach())
    expected = (earned[0] - earned[1]) / (2 * 0.05) * 0.3
    assert expected.abs() > 1e-3
    for slope in module.slopes(theta, task, support, query).values():
        torch.testing.assert_close(slope, expected.expand_as(slope), rtol=1e-8, atol=1e-10)


def test_learners_are_trained_by_what_they_earn() -> None:
    module = EvolutionStrategies(Still(), pairs=4, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=60, max_epochs=-1, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=bowl(meta_batch_size=40))
    torch.testing.assert_close(module.learner.place.detach(), torch.tensor([2.0, 2.0]), rtol=0, atol=0.25)


def test_what_cannot_evolve_is_told() -> None:
    with pytest.raises(ConfigError, match="pairs=0 must be at least 1"):
        EvolutionStrategies(Still(), pairs=0)
    with pytest.raises(ConfigError, match="deviation=0 must be above 0"):
        EvolutionStrategies(Still(), deviation=0)
    with pytest.raises(ConfigError, match="has no parameters"):
        EvolutionStrategies(Random(1, Discrete(2)))
