"""Worlds against what is known of them: frequencies, optimal returns, and figures of books."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_meta.core.sampling import episode_keys, uniform
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Actions, Bandits, CartPole, Continuous, Discrete, Grid, Navigation, TabularMDP, World
from lightning_meta.worlds.bandits import bayes_optimal_return, gittins_indices
from lightning_meta.worlds.tabular_mdp import action_values

WORLDS: list[World] = [
    Bandits(3, 4), Bandits(2, 4, dependent=True), Navigation(6), TabularMDP(4, 3, 5), CartPole(), Grid(4, 6),
]  # fmt: skip


def dice(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(uniform(episode_keys(seed, 7, range(count)), size)).clamp(1e-7, 1 - 1e-7)


def chi_square(drawn: Tensor, chances: Tensor) -> float:
    """The probability of so uneven a draw."""
    found = torch.bincount(drawn, minlength=len(chances)).double()
    return stats.chisquare(found.numpy(), (chances.double() / chances.double().sum() * len(drawn)).numpy()).pvalue


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_one_task_of_a_batch_is_the_task_alone(world: World) -> None:
    """Under vmap as by itself, and whatever it is drawn beside."""
    keys = episode_keys(0, 0, range(5))
    tasks, actions = world.draw(keys), world.actions.draw(torch.zeros(7, world.actions.scores), dice(7, 2)[:, :1])
    thrown = dice(7, world.dice).float()

    def run(task):
        state = world.start(task, thrown)
        seen = world.seen(state)
        state, reward, over = world.step(task, state, actions, thrown)
        return seen, world.seen(state), reward, over, world.best(task, seen, 2)

    together = torch.vmap(run)(tasks)
    for place in range(5):
        alone = run(torch.utils._pytree.tree_map(lambda leaf: leaf[0], world.draw(keys[place : place + 1])))
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours, theirs[place])


def test_arms_pay_as_often_as_they_should() -> None:
    chances, world, thrown = torch.tensor([0.2, 0.7]), Bandits(2), dice(20_000, 1)
    for arm, chance in enumerate(chances.tolist()):
        _, reward, over = world.step(chances, world.start(chances, thrown), torch.full((20_000,), arm), thrown)
        assert chi_square(reward.long(), torch.tensor([1 - chance, chance])) > 0.001
        assert not over.any()


def test_dependent_arms_are_of_one_chance() -> None:
    chances = Bandits(2, dependent=True).draw(episode_keys(0, 0, range(1000)))
    torch.testing.assert_close(chances.sum(1), torch.ones(1000))
    assert stats.kstest(chances[:, 0].numpy(), "uniform").pvalue > 0.001
    with pytest.raises(ConfigError, match="arms=3; set it to 2"):
        Bandits(3, dependent=True)


def test_states_follow_each_other_as_often_as_they_should() -> None:
    world = TabularMDP(4, 3)
    task = torch.utils._pytree.tree_map(lambda leaf: leaf[0], world.draw(episode_keys(3, 0, [0])))
    torch.testing.assert_close(task.moves.sum(-1), torch.ones(4, 3))
    thrown = dice(20_000, 2)
    state, reward, _ = world.step(task, torch.full((20_000,), 2), torch.full((20_000,), 1), thrown)
    assert chi_square(state, task.moves[2, 1]) > 0.001
    assert stats.kstest((reward - task.rewards[2, 1]).numpy(), "norm").pvalue > 0.001


def test_the_best_returns_of_random_processes_are_those_of_the_literature() -> None:
    """A policy by chance earns 10.0 an episode, the optimal one 21.8 (10 and 5, horizon 10)."""
    task = TabularMDP().draw(episode_keys(0, 0, range(4000)))
    assert task.rewards.mean().item() == pytest.approx(1, abs=0.01)
    best = torch.vmap(lambda moves, rewards: action_values(type(task)(moves, rewards), 10)[0].max())(*task)
    assert best.mean().item() == pytest.approx(21.8, abs=0.1)


def test_chances_of_next_states_are_dirichlet() -> None:
    """Of ten, one has the mean 0.1 and the variance of Beta(1, 9)."""
    moves = TabularMDP().draw(episode_keys(1, 0, range(200))).moves
    assert stats.kstest(moves[..., 3].flatten().numpy(), stats.beta(1, 9).cdf).pvalue > 0.001


def test_the_best_walk_is_straight_and_as_long_as_it_must_be() -> None:
    world, goals = Navigation(), Navigation().draw(episode_keys(0, 0, range(500)))
    assert goals.abs().max() <= 0.5 and goals.abs().max() > 0.49
    place, total, alive = torch.zeros(500, 2), torch.zeros(500), torch.ones(500)
    steps = torch.zeros(500)
    for left in range(6, 0, -1):
        action = world.best(goals, place, left)
        place, reward, over = torch.vmap(world.step)(goals, place[:, None], action[:, None], torch.zeros(500, 1, 1))
        place, total, steps = place[:, 0], total + reward[:, 0] * alive, steps + alive
        alive = alive * ~over[:, 0]
    furthest = goals.abs().max(1).values
    assert not alive.any()
    # It may end a step early, near the goal.
    assert ((steps == (furthest / 0.1).ceil()) | (steps == ((furthest - 0.01) / 0.1).ceil())).all()
    assert (steps <= 5).all() and (total > -2).all()


def test_actions_of_more_than_one_are_cut() -> None:
    world = Navigation()
    place, reward, over = world.step(
        torch.tensor([0.1, -0.05]), torch.zeros(1, 2), torch.tensor([[7.0, -0.5]]), torch.zeros(1, 1)
    )
    torch.testing.assert_close(place, torch.tensor([[0.1, -0.05]]))
    assert reward.item() == pytest.approx(0) and over.item()


def test_gittins_indices_are_those_of_the_book() -> None:
    """Gittins, Glazebrook, Weber: "Multi-armed Bandit Allocation Indices", tables of the Bernoulli process."""
    indices = gittins_indices(3, 0.9)
    for (won, lost), book in {(0, 0): 0.7029, (1, 0): 0.8001, (0, 1): 0.5001}.items():
        assert indices[won, lost].item() == pytest.approx(book, abs=0.0011)
    assert gittins_indices(1, 0.99)[0, 0].item() == pytest.approx(0.8699, abs=0.0011)
    assert (indices.diff(dim=0) > 0).all() and (indices.diff(dim=1) < 0).all()


def test_the_bayes_optimal_return_is_that_of_an_enumeration() -> None:
    """Two arms and two pulls by hand: 1/2, then the better of what was seen. And longer ones, as computed elsewhere."""
    assert bayes_optimal_return(2, 1) == 0.5
    assert bayes_optimal_return(2, 2) == pytest.approx(0.5 + 0.5 * 2 / 3 + 0.5 * 0.5)
    assert bayes_optimal_return(1, 7) == pytest.approx(3.5)
    assert bayes_optimal_return(2, 10) == pytest.approx(6.0218, abs=1e-4)
    assert bayes_optimal_return(5, 10) == pytest.approx(6.6600, abs=1e-4)
    assert bayes_optimal_return(50, 10) == pytest.approx(6.714, abs=1e-3)


@pytest.mark.parametrize("kind", [Discrete(3), Continuous(2)], ids=repr)
def test_actions_are_those_of_the_distributions_of_torch(kind: Actions) -> None:
    scores = torch.randn(kind.scores, generator=torch.Generator().manual_seed(0)).double()
    drawn = kind.draw(scores.expand(20_000, -1), dice(20_000, kind.dice))
    if isinstance(kind, Discrete):
        truth = torch.distributions.Categorical(logits=scores)
        assert chi_square(drawn, truth.probs) > 0.001
    else:
        truth = torch.distributions.Independent(torch.distributions.Normal(scores[:2], scores[2:].exp()), 1)
        for place in range(2):
            norm = stats.norm(scores[place].item(), scores[2 + place].exp().item())
            assert stats.kstest(drawn[:, place].numpy(), norm.cdf).pvalue > 0.001
    torch.testing.assert_close(kind.log_prob(scores.expand(20_000, -1), drawn), truth.log_prob(drawn))
    torch.testing.assert_close(kind.entropy(scores), truth.entropy())
    assert kind.encode(drawn).shape == (20_000, kind.size)


def test_the_last_action_is_drawn_where_chances_sum_to_less_than_one() -> None:
    drawn = Discrete(3).draw(torch.tensor([0.0, 0.0, -50.0]), torch.tensor([1 - 1e-7]))
    assert drawn.item() <= 2
    assert np.isfinite(Continuous(1).draw(torch.zeros(2), torch.tensor([1 - 1e-7])).item())


def test_a_world_without_steps_is_refused() -> None:
    for make in (lambda: Navigation(0), lambda: TabularMDP(horizon=0), lambda: Bandits(pulls=0)):
        with pytest.raises(ConfigError, match="=0 must be at least 1"):
            make()
    assert all(isinstance(world, World) for world in WORLDS)
