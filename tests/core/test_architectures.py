"""Searches among cells, against enumeration: policies, their gradient, and evolution by hand."""

from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_meta.core.architectures import (
    Population,
    at_random,
    children,
    dice_of,
    joined_by,
    leave_one_out,
    log_probabilities,
    one_of,
    parents,
)

EVERY = torch.tensor([*product(range(3), repeat=2)])  # cells of two edges and three operations
SOME = EVERY[EVERY.sum(1) < 4]  # all but the last
GRID = (torch.arange(3600) + 0.5) / 3600  # dice that fall everywhere


def logits() -> Tensor:
    return torch.tensor([[0.3, -0.2, 0.9], [1.1, 0.0, -0.4]], dtype=torch.float64, requires_grad=True)


def rewards(cells: Tensor) -> Tensor:
    return torch.rand(len(cells), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_edges_choose_independently_among_the_cells_that_there_are() -> None:
    p = logits().softmax(1).detach()
    joint = torch.tensor([p[0, a] * p[1, b] for a, b in EVERY.tolist()])
    torch.testing.assert_close(log_probabilities(logits(), EVERY).exp(), joint)
    torch.testing.assert_close(log_probabilities(logits(), SOME).exp(), joint[:8] / joint[:8].sum())


def test_reinforce_over_all_cells_is_the_gradient_of_the_expected_reward() -> None:
    """With two samples, all pairs: what each has as a baseline is the other, and the gradient is the same."""
    theta, reward = logits(), rewards(SOME)
    log_p = log_probabilities(theta, SOME)
    (expected,) = torch.autograd.grad((log_p.exp() * reward).sum(), theta, retain_graph=True)
    p = log_p.exp().detach()
    (plain,) = torch.autograd.grad((p * reward * log_p).sum(), theta, retain_graph=True)
    torch.testing.assert_close(plain, expected)
    terms = [
        p[i] * p[j] * (leave_one_out(reward[[i, j]]) * log_p[[i, j]]).mean()
        for i, j in product(range(len(SOME)), repeat=2)
    ]
    (of_pairs,) = torch.autograd.grad(torch.stack(terms).sum(), theta)
    torch.testing.assert_close(of_pairs, expected, rtol=1e-12, atol=1e-14)


def test_the_baseline_is_the_mean_of_the_others_and_lowers_the_variance() -> None:
    reward = torch.tensor([0.9, 0.5, 0.7, 0.1], dtype=torch.float64)
    by_hand = [r - (reward.sum() - r) / 3 for r in reward]
    torch.testing.assert_close(leave_one_out(reward), torch.stack(by_hand))
    theta, all_rewards = logits(), 0.8 + 0.1 * rewards(SOME)
    log_p = log_probabilities(theta, SOME)
    scores_KG = torch.stack([torch.autograd.grad(one, theta, retain_graph=True)[0].flatten() for one in log_p])
    places = one_of(log_p.detach().exp().expand(8000, -1), dice_of(0, torch.arange(8000), 1)[:, 0]).view(1000, 8)
    estimates = {
        name: torch.stack([(weigh(all_rewards[row])[:, None] * scores_KG[row]).mean(0) for row in places])
        for name, weigh in (("plain", lambda r: r), ("leave one out", leave_one_out))
    }
    variances = {name: found.var(0).sum().item() for name, found in estimates.items()}
    assert variances["leave one out"] < 0.02 * variances["plain"]


def test_places_are_drawn_in_proportion_to_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 2.0, 0.0])
    places = one_of(weights.expand(len(GRID), -1), GRID)
    assert places.bincount(minlength=6).tolist() == [0, 600, 0, 1800, 1200, 0]
    drawn = at_random(SOME, GRID)
    assert [(drawn == cell).all(1).sum().item() for cell in SOME] == [450] * 8


def test_dice_belong_to_the_number_of_a_cell() -> None:
    """Whatever it is drawn beside, so that any number of processes draws the same."""
    whole = dice_of(3, torch.arange(6), 2)
    torch.testing.assert_close(torch.cat([dice_of(3, torch.arange(4), 2), dice_of(3, torch.tensor([4, 5]), 2)]), whole)
    assert not torch.equal(dice_of(4, torch.arange(6), 2), whole)


def test_the_oldest_dies_and_the_best_of_a_sample_is_a_parent() -> None:
    """Played by hand: of three, the first is the best and the oldest, and dies."""
    first = torch.tensor([[0, 0], [0, 1], [0, 2]])
    population = joined_by(
        Population(torch.zeros(3, 2, dtype=torch.long), torch.zeros(3), torch.tensor(0)),
        first, torch.tensor([0.9, 0.2, 0.5]),
    )  # fmt: skip
    assert population.cells.tolist() == first.tolist() and population.born == 3
    dice = torch.tensor([[0.4, 0.7], [0.4, 0.0], [0.4, 0.5]])  # of thirds: (2nd, 3rd), (2nd, 1st), (2nd, 2nd)
    assert parents(population, dice).tolist() == [[0, 2], [0, 0], [0, 1]]
    population = joined_by(population, torch.tensor([[1, 1]]), torch.tensor([0.1]))
    assert population.cells.tolist() == [[1, 1], [0, 1], [0, 2]]
    population = joined_by(population, torch.tensor([[2, 2], [2, 0]]), torch.tensor([0.3, 0.4]))
    assert population.cells.tolist() == [[1, 1], [2, 2], [2, 0]]
    torch.testing.assert_close(population.rewards, torch.tensor([0.1, 0.3, 0.4]))
    assert population.born == 6


@pytest.mark.parametrize("mutation", ["edge", "motif"])
@pytest.mark.parametrize("parent", EVERY.tolist())
def test_a_child_is_any_cell_that_is_there_and_differs_by_one_change(parent: list[int], mutation: str) -> None:
    """The neighbours by enumeration; all are equally likely."""

    def one_change(child: list[int]) -> bool:
        changed = [(a, b) for a, b in zip(parent, child, strict=True) if a != b]
        if mutation == "edge":
            return len(changed) == 1
        return len({*changed}) == 1 and len(changed) == parent.count(changed[0][0])

    neighbours = [child for child in SOME.tolist() if one_change(child)]
    found = children(torch.tensor([parent]).expand(len(GRID), -1), GRID, mutation, SOME, 3)
    counts = {tuple(child): (found == torch.tensor(child)).all(1).sum().item() for child in neighbours}
    assert sum(counts.values()) == len(GRID)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_parent_without_neighbours_stays() -> None:
    alone = torch.tensor([[0, 0], [1, 1]])
    assert children(alone, torch.tensor([0.1, 0.9]), "edge", alone, 3).tolist() == alone.tolist()
    assert children(alone, torch.tensor([0.1, 0.9]), "motif", alone, 3).tolist() == [[1, 1], [0, 0]]
