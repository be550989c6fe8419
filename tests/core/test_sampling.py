"""Draws against SplitMix64 and Floyd's algorithm in plain Python, and against the statistics they promise."""

from itertools import permutations

import numpy as np
import pytest

from lightning_meta.core import sampling
from lightning_meta.core.sampling import choose, episode_keys, normal, subkeys, uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
# (seed, split's stream, episode): key, the 5 classes of 964, and 3 of the 20 examples of each. Frozen test episodes are
# these numbers: a release that changes one of them makes every published result incomparable.
FROZEN = {
    (0, 0, 0): (
        0xA706DD2F4D197E6F,
        [671, 497, 20, 952, 616],
        [[17, 19, 15], [2, 9, 7], [14, 2, 19], [9, 17, 8], [10, 1, 8]],
    ),
    (0, 0, 1): (
        0xB382A305F4414F5E,
        [841, 140, 460, 212, 128],
        [[19, 4, 18], [13, 10, 2], [10, 14, 3], [10, 8, 13], [0, 3, 18]],
    ),
    (0, 1, 0): (
        0x46B73E79F0C37C00,
        [678, 323, 78, 367, 420],
        [[15, 8, 12], [12, 11, 9], [12, 18, 8], [5, 15, 17], [12, 10, 2]],
    ),
    (0, 2, 599): (
        0x83AB8886D7554ABD,
        [622, 306, 14, 842, 100],
        [[7, 16, 8], [1, 5, 6], [19, 2, 15], [16, 6, 3], [11, 5, 1]],
    ),
    (7, 2, 0): (
        0x90BC697D26551091,
        [853, 275, 815, 63, 469],
        [[1, 0, 16], [17, 1, 6], [7, 19, 4], [8, 10, 17], [17, 3, 7]],
    ),
    (9223372036854775807, 0, 1000000000): (
        0x40235B8BFD60D787,
        [41, 777, 413, 262, 466],
        [[12, 1, 14], [3, 9, 0], [19, 15, 1], [4, 11, 10], [12, 11, 9]],
    ),
}


def mix(x: int) -> int:
    """The finaliser of Steele, Lea, Flood (2014), "Fast Splittable Pseudorandom Number Generators"."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def subkey(key: int, index: int) -> int:
    return mix((key + GOLDEN * (index + 1)) & MASK)


def floyd(key: int, population: int, size: int) -> list[int]:
    """Floyd's sampling without replacement (Bentley, Floyd 1987), then a shuffle by random words."""
    picks: list[int] = []
    for i in range(size):
        top = population - size + i
        draw = subkey(key, i) % (top + 1)
        picks.append(top if draw in picks else draw)
    return [pick for _, pick in sorted((subkey(key, size + i), pick) for i, pick in enumerate(picks))]


def keys_of(count: int, seed: int = 0) -> np.ndarray:
    return episode_keys(seed, 0, range(count))


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def bounds(degrees: int) -> tuple[float, float]:
    """Where chi-square lies but for about one case in 100,000: 5 standard deviations, and more where it is skewed."""
    spread = 5 * (2 * degrees) ** 0.5
    return max(0.0, degrees - spread), degrees + spread + 12


@pytest.mark.parametrize("where", FROZEN, ids=str)
def test_episodes_never_change_between_releases(where: tuple[int, int, int]) -> None:
    seed, stream, episode = where
    key, classes, examples = FROZEN[where]
    (found,) = episode_keys(seed, stream, [episode])
    assert int(found) == key
    class_key, example_key = subkeys(found[None], [0, 1])[0]
    assert choose(class_key[None], 964, 5)[0].tolist() == classes
    assert choose(subkeys(example_key[None], range(5)), 20, 3)[0].tolist() == examples


def test_keys_and_draws_equal_plain_python() -> None:
    for seed, stream, ids in ((0, 0, [0, 1, 2]), (2**63 - 1, 2, [10**12, 3])):
        expected = [subkey(subkey(mix(seed), stream), i) for i in ids]
        keys = episode_keys(seed, stream, ids)
        assert keys.tolist() == expected
        for population, size in ((3, 3), (20, 16), (10**6, 5)):
            assert choose(keys, population, size).tolist() == [floyd(key, population, size) for key in expected]
        assert uniform(keys, 4).tolist() == [[(subkey(key, i) >> 11) / 2**53 for i in range(4)] for key in expected]


def test_keys_differ_for_seed_split_and_episode() -> None:
    keys = np.stack([[episode_keys(seed, stream, range(1000)) for stream in range(3)] for seed in range(10)])
    assert len(np.unique(keys)) == keys.size
    assert len(np.unique(subkeys(keys[0, 0], range(30)))) == 30_000


def test_keys_of_an_episode_do_not_depend_on_its_neighbours() -> None:
    together = episode_keys(5, 1, [7, 3, 999])
    assert together.tolist() == [episode_keys(5, 1, [i])[0] for i in (7, 3, 999)]


def test_every_bit_of_neighbouring_keys_is_fair() -> None:
    keys = keys_of(20_000)
    for words in (keys, keys[1:] ^ keys[:-1]):
        ones = ((words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(0)
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / len(words) ** 0.5


@pytest.mark.parametrize(("population", "size"), [(1, 1), (5, 5), (20, 16), (964, 60)])
def test_choose_gives_distinct_numbers_below_the_population(population: int, size: int) -> None:
    picks = choose(keys_of(2000), population, size)
    assert picks.shape == (2000, size)
    assert picks.min() >= 0
    assert picks.max() < population
    assert (np.diff(np.sort(picks, axis=1), axis=1) > 0).all()


@pytest.mark.parametrize(("population", "size"), [(3, 3), (5, 3), (6, 2), (4, 1)])
def test_every_ordered_choice_is_equally_likely(population: int, size: int) -> None:
    orders = {order: index for index, order in enumerate(permutations(range(population), size))}
    found = [orders[tuple(row)] for row in choose(keys_of(60_000, seed=1), population, size).tolist()]
    low, high = bounds(len(orders) - 1)
    assert low <= chi_square(np.bincount(found, minlength=len(orders))) <= high


def test_every_class_is_equally_likely_in_every_place() -> None:
    population, size = 100, 20
    picks = choose(keys_of(10_000, seed=2), population, size)
    low, high = bounds(population - 1)
    for place in range(size):
        assert low <= chi_square(np.bincount(picks[:, place], minlength=population)) <= high


def test_choose_takes_a_population_for_every_row() -> None:
    keys = subkeys(keys_of(3000), range(3))
    populations = np.array([4, 7, 30])
    picks = choose(keys, populations, 4)
    assert picks.shape == (3000, 3, 4)
    for column, population in enumerate(populations):
        assert np.array_equal(picks[:, column], choose(keys[:, column], population, 4))
        assert np.array_equal(np.unique(picks[:, column]), np.arange(population))


def test_uniform_has_the_range_and_moments_of_a_uniform_distribution() -> None:
    draws = uniform(keys_of(20_000), 5, -2.0, 4.0)
    assert draws.shape == (20_000, 5)
    assert draws.min() >= -2
    assert draws.max() < 4
    standard_error = 6 / (12 * draws.size) ** 0.5
    assert abs(draws.mean() - 1) < 5 * standard_error
    assert abs(draws.var() - 36 / 12) < 5 * 36 / (180 * draws.size) ** 0.5
    low, high = bounds(99)
    assert low <= chi_square(np.histogram(draws, bins=100, range=(-2, 4))[0]) <= high
    correlations = np.corrcoef(draws.T) - np.eye(5)
    assert np.abs(correlations).max() < 5 / len(draws) ** 0.5


def test_uniform_excludes_its_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, smallest = np.full((1, 1), MASK, dtype=np.uint64), np.zeros((1, 1), dtype=np.uint64)
    monkeypatch.setattr(sampling, "subkeys", lambda keys, indices: largest)
    assert 0.999 < uniform(keys_of(1), 1).item() < 1
    monkeypatch.setattr(sampling, "subkeys", lambda keys, indices: smallest)
    assert uniform(keys_of(1), 1).item() == 0


def test_normal_draws_have_the_moments_and_the_tails_of_a_normal_distribution() -> None:
    draws = normal(keys_of(100), 2000)
    assert draws.shape == (100, 2000)
    assert draws.mean() == pytest.approx(0, abs=0.01)
    assert draws.std() == pytest.approx(1, abs=0.01)
    assert (draws**4).mean() == pytest.approx(3, abs=0.1)
    assert (np.abs(draws) > 1.96).mean() == pytest.approx(0.05, abs=0.003)
    assert np.corrcoef(draws[:, 0], draws[:, 1])[0, 1] == pytest.approx(0, abs=0.3)
