"""Counter-based random numbers: every draw is a pure function of (seed, split, episode, position).

A generator object would tie an episode to everything drawn before it. Hashing the position instead (SplitMix64, Steele
et al. 2014) gives the same episode on any number of workers and GPUs, in any order, after any resume, and with any
version of the libraries; a whole meta-batch is drawn in a few vectorised operations.
"""

from math import pi

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Keys) -> Keys:
    """SplitMix64's finaliser: a bijection of 64-bit words whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def subkeys(keys: Keys, indices: npt.ArrayLike) -> Keys:
    """Derive independent keys: one for each index, on a new last axis `(*keys.shape, len(indices))`."""
    return _mix(keys[..., None] + _GOLDEN * (np.asarray(indices, dtype=np.uint64) + np.uint64(1)))


def episode_keys(seed: int, stream: int, ids: npt.ArrayLike) -> Keys:
    """Keys `(T,)` of the episodes `ids` of a stream (a split), for a seed in 0..2^63-1."""
    root = np.asarray([seed], dtype=np.uint64)
    return subkeys(subkeys(_mix(root), [stream])[..., 0], ids)[0]


def uniform(keys: Keys, size: int, low: float = 0.0, high: float = 1.0) -> npt.NDArray[np.float64]:
    """Uniform draws in [low, high), shape `(*keys.shape, size)`."""
    unit = (subkeys(keys, np.arange(size)) >> np.uint64(11)) * 2.0**-53
    return low + (high - low) * unit


def normal(keys: Keys, size: int) -> npt.NDArray[np.float64]:
    """Standard normal draws `(*keys.shape, size)` by the Box-Muller transform."""
    radius_key, angle_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
    return np.sqrt(-2 * np.log1p(-uniform(radius_key, size))) * np.cos(uniform(angle_key, size, 0, 2 * pi))


def choose(keys: Keys, population: npt.ArrayLike, size: int) -> npt.NDArray[np.int64]:
    """Ordered draws without replacement: `size` distinct numbers below `population`, every order equally likely.

    Floyd's algorithm draws the set in `size` steps whatever the population (its cost does not grow with the number of
    classes); sorting by random words then shuffles it.

    Args:
        keys: one key for each set, any shape.
        population: a number >= size, or an array of them that broadcasts to `keys`.
        size: how many to draw.

    Returns:
        Integers of shape `(*keys.shape, size)`.
    """
    words = subkeys(keys, np.arange(2 * size))
    limits = np.broadcast_to(np.asarray(population, dtype=np.int64), keys.shape)
    picks = np.empty((*keys.shape, size), dtype=np.int64)
    for i in range(size):
        top = limits - size + i
        # The modulus of a 64-bit word is biased by less than population / 2^64: invisible.
        draw = (words[..., i] % (top + 1).astype(np.uint64)).astype(np.int64)
        taken = (picks[..., :i] == draw[..., None]).any(-1)
        picks[..., i] = np.where(taken, top, draw)
    return np.take_along_axis(picks, words[..., size:].argsort(-1, kind="stable"), axis=-1)


def choose_each(keys: Keys, population: npt.ArrayLike, sizes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """As `choose`, but each set has a size of its own: `(*keys.shape, largest size)`, -1 after the end of a set.

    The words of a draw do not depend on the largest size, so a set is the same whatever it is drawn beside.

    Args:
        keys: one key for each set, any shape.
        population: a number, or an array of them that broadcasts to `keys`, none smaller than the size.
        sizes: likewise; 0 draws nothing.
    """
    limits, sizes = (np.broadcast_to(np.asarray(given, dtype=np.int64), keys.shape) for given in (population, sizes))
    most = int(sizes.max(initial=0))
    words = subkeys(keys, np.arange(2 * most))  # in turn of a draw and of its place
    picks = np.full((*keys.shape, most), -1)
    for i in range(most):
        top = limits - sizes + i
        inside = i < sizes
        draw = (words[..., 2 * i] % np.where(inside, top + 1, 1).astype(np.uint64)).astype(np.int64)
        taken = (picks[..., :i] == draw[..., None]).any(-1)
        picks[..., i] = np.where(inside, np.where(taken, top, draw), -1)
    places = np.where(picks >= 0, words[..., 1::2], np.iinfo(np.uint64).max)
    return np.take_along_axis(picks, places.argsort(-1, kind="stable"), axis=-1)


def whole(keys: Keys, low: int, high: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Whole numbers from `low` to `high`, both included, every one equally likely: `(*keys.shape,)`."""
    span = np.asarray(high, dtype=np.int64) - low + 1
    return low + (uniform(keys, 1)[..., 0] * span).astype(np.int64)
