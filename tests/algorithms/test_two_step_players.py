"""Habit and plan do what their equations say, and are told apart by what they repeat."""

import pytest
import torch

from lightning_meta.algorithms import ModelBased, ModelFree
from lightning_meta.compat import tree_map
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.reports.stay_probability import effects, stays
from lightning_meta.worlds import Bandits, Discrete, TwoStep
from tests.algorithms.rollout_cases import rollouts

ROLLOUTS = {
    "model-free": (lambda **kw: ModelFree(**kw), lambda: rollouts(TwoStep(4))),
    "model-based": (lambda **kw: ModelBased(**kw), lambda: rollouts(TwoStep(4))),
}


@pytest.mark.parametrize("kind", [ModelFree, ModelBased])
def test_values_follow_their_equation_trial_by_trial(kind: type[ModelFree]) -> None:
    """Written out for one trajectory with plain numbers."""
    module, world = kind(rate=0.3, sharpness=2.0), TwoStep(30)
    module.world = world
    task, _, query = tree_map(
        lambda leaf: leaf[0], Rollouts(world, rounds=0, trajectories=1).dataset("test").__getitems__([0])
    )
    played, values = module.collect(module.start(query), task, query), [0.5, 0.5]
    for trial in range(30):
        worth = values if kind is ModelFree else [0.8 * a + 0.2 * b for a, b in (values, values[::-1])]
        chance = 1 / (1 + torch.tensor(2.0 * (worth[1] - worth[0])).exp().item())
        choice = played.actions[2 * trial, 0].item()
        assert choice == int(query.actor[2 * trial, 0, 0].item() > chance)
        place = played.told.seen[2 * trial + 1, 0].argmax().item() - 1
        credited = choice if kind is ModelFree else place
        values[credited] += 0.3 * (played.rewards[2 * trial + 1, 0].item() - values[credited])


def test_what_is_repeated_tells_a_plan_from_a_habit() -> None:
    """With places that pay by chance nothing but the last trial matters to whoever learns at once."""
    found = {}
    for kind in (ModelFree, ModelBased):
        module, data = kind(rate=1.0, sharpness=2.0), Rollouts(TwoStep(pays=0.5), rounds=0, trajectories=1)
        module.world = data.world
        played = module.record(data.dataset("test").__getitems__(range(300)))[-1]
        found[kind] = effects(stays(played))
    for kind, name, other in ((ModelFree, "reward", "interaction"), (ModelBased, "interaction", "reward")):
        value, half = found[kind][name]
        assert value - half > 0.2
        value, half = found[kind][other]
        assert abs(value) < 1.5 * half + 0.02


def test_what_they_cannot_play_is_told() -> None:
    class Like(Bandits):
        seen_size = 3

    with pytest.raises(ConfigError, match="ModelFree chooses in the two-step task"):
        ModelFree().check_world(Like(2))
    with pytest.raises(ConfigError, match="rate=0 must lie above 0"):
        ModelFree(rate=0)
    assert ModelFree().actions == Discrete(2)
