"""Players against what they are known to earn: closed forms, and sampling done plainly."""

import pytest
import torch
from scipy import stats

from lightning_meta.algorithms import UCB, EpsilonGreedy, Gittins, Oracle, Random, Thompson
from lightning_meta.compat import tree_map
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.modules import RolloutModule
from lightning_meta.worlds import Bandits, Continuous, Discrete, Navigation, TabularMDP
from lightning_meta.worlds.bandits import bayes_optimal_return
from tests.algorithms.rollout_cases import arms, navigation, processes

ROLLOUTS = {
    "random": (lambda **kw: Random(2, Continuous(2), **kw), navigation),
    "oracle": (lambda **kw: Oracle(4, Discrete(3), **kw), processes),
    "epsilon-greedy": (lambda **kw: EpsilonGreedy(3, 0.2, **kw), arms),
    "ucb": (lambda **kw: UCB(3, **kw), arms),
    "thompson": (lambda **kw: Thompson(3, 50, **kw), arms),
    "gittins": (lambda **kw: Gittins(3, 8, **kw), arms),
}
TASKS = 8000


@torch.no_grad()
def returns(module: RolloutModule, world: Bandits | Navigation | TabularMDP, tasks: int = TASKS) -> torch.Tensor:
    """Of so many test trials."""
    data = Rollouts(world, rounds=0, trajectories=1)
    module.world = world
    return module.eval().measure(data.dataset("test").__getitems__(range(tasks)))[0]["return"]


def interval(values: torch.Tensor) -> tuple[float, float]:
    return values.mean().item(), 3 * values.std().item() / len(values) ** 0.5


def test_chance_and_full_knowledge_earn_what_they_must() -> None:
    """Of K uniform chances the mean is 1/2, and that of the largest K / (K + 1)."""
    for module, each in ((Random(1, Discrete(5)), 0.5), (Oracle(1, Discrete(5)), 5 / 6)):
        mean, width = interval(returns(module, Bandits(5, 10)))
        assert abs(mean - 10 * each) < width
    mean, width = interval(returns(Random(10, Discrete(5)), TabularMDP(), 2000))
    assert abs(mean - 10) < width
    mean, width = interval(returns(Oracle(10, Discrete(5)), TabularMDP(), 2000))
    assert abs(mean - 21.8) < width + 0.05, "of the literature"


def test_no_player_of_bandits_earns_more_than_the_bound_and_gittins_nearly_does() -> None:
    world, bound = Bandits(5, 10), bayes_optimal_return(5, 10)
    earned = {
        type(module).__name__: returns(module, world)
        for module in (Gittins(5, 10), UCB(5), EpsilonGreedy(5), Thompson(5))
    }
    for values in earned.values():
        mean, width = interval(values)
        assert mean < bound + width
    assert earned["Gittins"].mean() > bound - 0.1
    # On common dice the difference is narrower than the intervals.
    assert (earned["Gittins"] - earned["Thompson"]).mean() > 0.5
    mean, width = interval(earned["Thompson"])
    assert abs(mean - 5.83) < width + 0.01, "computed elsewhere by drawing chances"


def test_thompson_sampling_is_that_of_drawn_chances() -> None:
    """How often each arm is the best among draws from Beta distributions."""
    won, lost = torch.tensor([[3.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 4.0]])
    draws = stats.beta(won.numpy() + 1, lost.numpy() + 1).rvs((200_000, 3), random_state=0)
    best = torch.bincount(torch.from_numpy(draws.argmax(1)), minlength=3) / 200_000
    torch.testing.assert_close(Thompson(3).chances(won, lost)[0], best, rtol=0, atol=0.004)


def test_epsilon_is_how_often_an_arm_is_taken_by_chance() -> None:
    dice = (torch.arange(10_000) + 0.5)[:, None] / 10_000
    won, lost = torch.tensor([[5.0, 1.0, 1.0]]).expand(10_000, 3), torch.ones(10_000, 3)
    taken = EpsilonGreedy(3, 0.3).scores(won, lost, dice).argmax(-1)
    assert torch.bincount(taken).tolist() == [8000, 1000, 1000]


def test_the_oracle_of_navigation_walks_straight() -> None:
    values = returns(Oracle(2, Continuous(2)), Navigation(), 500)
    chance = returns(Random(2, Continuous(2)), Navigation(), 500)
    assert values.min() > -2 and chance.mean() < -30


def test_a_player_of_bandits_counts_every_pull_once() -> None:
    module, world = EpsilonGreedy(3, 0.0), Bandits(3, 4)
    module.world = world
    task, _, query = tree_map(lambda leaf: leaf[0], arms().dataset("test").__getitems__([0]))
    played = module.collect(module.start(query), task, query)
    told, memory = played.told, None
    for step in range(8):
        _, memory = module.act(None, memory, tree_map(lambda leaf, s=step: leaf[s], told), query.actor[step])
        assert sum(part.sum() for part in memory) == step, "of the pulls before, none before the first"


def test_what_a_player_cannot_play_is_told() -> None:
    module = Gittins(3, 8)
    with pytest.raises(ConfigError, match=r"set model\.pulls to 9"):
        module.check_world(Bandits(3, 9))
    with pytest.raises(ConfigError, match="sees seen_size=1 numbers"):
        module.check_world(TabularMDP(4, 3))
    with pytest.raises(ConfigError, match="epsilon=2 must lie between 0 and 1"):
        EpsilonGreedy(3, 2)
