"""The grid against walks written down by hand, and its bound against every way to search that there is."""

from itertools import product

import pytest
import torch
from scipy import stats

from lightning_meta.core.sampling import episode_keys
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Grid
from lightning_meta.worlds.grid import bayes_optimal_return


def walk(world: Grid, goal: int, actions: list[int]) -> tuple[list[int], list[float]]:
    """The cells and the rewards of a walk."""
    dice, cells, rewards = torch.full((1, 1), 0.5), [], []
    state = world.start(torch.tensor(goal), dice)
    for action in actions:
        state, reward, over = world.step(torch.tensor(goal), state, torch.tensor([action]), dice)
        assert not over.item()
        cells.append(state.item())
        rewards.append(round(reward.item(), 6))
    return cells, rewards


def test_one_walks_within_the_grid_and_is_paid_on_the_goal() -> None:
    """Stay, up, right, down, left; against the border one stays."""
    cells, rewards = walk(Grid(), 6 + 5, [4, 3, 1, 2, 2, 0, 3, 4, 4])
    assert cells == [0, 0, 1, 6, 11, 11, 10, 5, 0]
    assert rewards == [-0.1, -0.1, -0.1, -0.1, 1, 1, -0.1, -0.1, -0.1]
    assert walk(Grid(), 24, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2])[0] == [1, 2, 3, 4, 4, 9, 14, 19, 24, 24]


def test_goals_are_uniform_and_not_at_the_corner() -> None:
    goals = Grid().draw(episode_keys(0, 0, range(21_000)))
    found = torch.bincount(goals, minlength=25)
    assert found[[0, 1, 5, 6]].tolist() == [0] * 4
    assert stats.chisquare(found[found > 0].numpy()).pvalue > 0.001 and (found > 0).sum() == 21
    with pytest.raises(ConfigError, match=r"side=2 must be at least 3"):
        Grid(2)


def test_who_knows_the_goal_goes_there_without_a_detour() -> None:
    world, dice = Grid(), torch.full((1, 1), 0.5)
    for goal in world.goals:
        task, total = torch.tensor(goal), 0.0
        state = world.start(task, dice)
        for left in range(15, 0, -1):
            state, reward, _ = world.step(task, state, world.best(task, world.seen(state), left), dice)
            total += reward.item()
        far = goal // 5 + goal % 5
        assert total == pytest.approx(-0.1 * (far - 1) + (15 - far + 1), abs=1e-5)


@pytest.mark.parametrize(("horizon", "walks"), [(1, 2), (4, 1), (5, 1), (3, 2), (4, 2)])
def test_no_search_earns_more_than_the_bound_and_one_earns_it(horizon: int, walks: int) -> None:
    """On 3 x 3 cells, played in the world: every sequence of moves until the goal is found, then straight to it."""
    world, goals = Grid(3, horizon), torch.tensor(Grid(3).goals)
    plans = torch.tensor([*product(range(1, 5), repeat=horizon * walks)])
    task = goals.repeat_interleave(len(plans))
    plan, dice = plans.repeat(len(goals), 1), torch.full((len(task), 1), 0.5)
    found, total = torch.zeros(len(task), dtype=torch.bool), torch.zeros(len(task))
    for number in range(walks):
        state = world.start(task, dice)
        for step in range(horizon):
            known = world.best(task, world.seen(state), horizon - step)
            action = torch.where(found, known, plan[:, number * horizon + step])
            state, reward, _ = world.step(task, state, action, dice)
            found, total = found | (reward > 0), total + reward
    best = total.view(len(goals), -1).mean(0).max()
    assert bayes_optimal_return(3, horizon, walks) == pytest.approx(best.item(), abs=1e-5)


@pytest.mark.slow
def test_the_bound_of_the_paper_s_grid() -> None:
    """One walk by hand: 14 of 21 cells at the steps 2 to 15, which return 15 - 1.1 (step - 1); -1.5 for the others."""
    by_hand = (sum(15 - 1.1 * step for step in range(1, 15)) - 7 * 1.5) / 21
    assert bayes_optimal_return(walks=1) == pytest.approx(by_hand, abs=1e-4)
    knowing = 4 * (16.1 - 1.1 * sum(sum(divmod(goal, 5)) for goal in Grid().goals) / 21)
    assert 4 * by_hand < bayes_optimal_return() < knowing
