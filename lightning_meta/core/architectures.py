"""Searches among cells: how to propose some, and what to learn from how good they were.

A cell is the operation of each of its edges. Random numbers are given ("dice", uniform in [0, 1)), so that all of these
are pure functions.

Shape letters: `E` edges, `O` operations, `K` cells that there are, `N` cells proposed, `P` population, `S` sample.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.core.sampling import episode_keys, uniform

SEARCH = 3000  # the stream of random numbers of a search; see `ROLES` of held-out images


def dice_of(seed: int, numbers: Tensor, size: int) -> Tensor:
    """Uniform numbers `(N, size)` for the cells of these numbers, counted from the beginning of a search."""
    return torch.from_numpy(uniform(episode_keys(seed, SEARCH, numbers.cpu().numpy()), size)).to(numbers.device)


def one_of(weights_NK: Tensor, dice_N: Tensor) -> Tensor:
    """A place in each row, with probabilities in proportion to the weights, `(N,)`."""
    sums_NK = weights_NK.double().cumsum(-1)
    places_N = (dice_N[:, None] * sums_NK[:, -1:] >= sums_NK).sum(-1)
    return places_N.clamp_max(weights_NK.shape[-1] - 1)


def at_random(cells_KE: Tensor, dice_N: Tensor) -> Tensor:
    """Cells `(N, E)`, all equally likely."""
    return cells_KE[one_of(torch.ones(len(dice_N), len(cells_KE), device=dice_N.device), dice_N)]


# ---- policies ----------------------------------------------------------------------------------------------------


def log_probabilities(logits_EO: Tensor, cells_KE: Tensor) -> Tensor:
    """Of each cell, `(K,)`: edges choose independently, and what they choose is one of these cells."""
    edges_E = torch.arange(len(logits_EO), device=logits_EO.device)
    return logits_EO.log_softmax(1)[edges_E, cells_KE].sum(1).log_softmax(0)


def leave_one_out(rewards_N: Tensor) -> Tensor:
    """Each reward less the mean of the others: it has no part in its own baseline, so REINFORCE stays unbiased.

    One alone has none, and nothing is learned from it."""
    return (rewards_N - rewards_N.mean()) * len(rewards_N) / max(len(rewards_N) - 1, 1)


# ---- evolution ---------------------------------------------------------------------------------------------------


class Population(NamedTuple):
    """The last P cells, in a ring: the next one takes the place of the oldest.

    Attributes:
        cells: `(P, E)`; places that are still empty come last.
        rewards: `(P,)`.
        born: `()` how many cells there have been.
    """

    cells: Tensor
    rewards: Tensor
    born: Tensor


def joined_by(population: Population, cells_NE: Tensor, rewards_N: Tensor) -> Population:
    """The oldest die, however good they were."""
    size = len(population.rewards)
    places_N = (population.born + torch.arange(len(cells_NE), device=cells_NE.device)) % size
    cells, rewards = population.cells.clone(), population.rewards.clone()
    cells[places_N], rewards[places_N] = cells_NE, rewards_N.to(rewards)
    return Population(cells, rewards, population.born + len(cells_NE))


def parents(population: Population, dice_NS: Tensor) -> Tensor:
    """The best of S that are drawn with replacement, for each of N children: `(N, E)`."""
    sample_NS = (dice_NS * len(population.rewards)).long()
    best_N1 = population.rewards[sample_NS].argmax(1, keepdim=True)
    return population.cells[sample_NS.gather(1, best_N1)[:, 0]]


def another_on_an_edge(cells_NE: Tensor, operations: int) -> Tensor:
    """All changes of one edge, `(N, E * O, E)`."""
    edges = cells_NE.shape[1]
    changed = cells_NE[:, None, None].repeat(1, edges, operations, 1)
    for edge in range(edges):
        changed[:, edge, :, edge] = torch.arange(operations, device=cells_NE.device)
    return changed.flatten(1, 2)


def another_for_an_operation(cells_NE: Tensor, operations: int) -> Tensor:
    """All changes of one operation into another wherever it stands, `(N, O * O, E)`."""
    all_O = torch.arange(operations, device=cells_NE.device)
    stands = cells_NE[:, None, None] == all_O[:, None, None]  # (N, O, 1, E)
    return torch.where(stands, all_O[:, None], cells_NE[:, None, None]).flatten(1, 2)


MUTATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "edge": another_on_an_edge,
    "motif": another_for_an_operation,
}


def children(parents_NE: Tensor, dice_N: Tensor, mutation: str, cells_KE: Tensor, operations: int) -> Tensor:
    """Changed parents `(N, E)`: of all changes that there are among the cells K, one, all equally likely.

    A parent of which there is no such change stays as it is.
    """
    changes_NCE = MUTATIONS[mutation](parents_NE, operations)
    digits_E = operations ** torch.arange(parents_NE.shape[1], device=parents_NE.device)
    there_NC = torch.isin((changes_NCE * digits_E).sum(-1), (cells_KE * digits_E).sum(-1))
    other_NC = (changes_NCE != parents_NE[:, None]).any(-1) & there_NC
    chosen_N = one_of(other_NC.float(), dice_N)
    child_NE = changes_NCE[torch.arange(len(parents_NE)), chosen_N]
    return torch.where(other_NC.any(1)[:, None], child_NE, parents_NE)
