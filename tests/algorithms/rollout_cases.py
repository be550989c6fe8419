"""Small worlds that are quick to play, for the contract and for the algorithms' own tests."""

from typing import Any

from lightning_meta.datamodules import Rollouts
from lightning_meta.worlds import Bandits, Navigation, TabularMDP, World

SIZES: dict[str, Any] = dict(
    meta_batch_size=4, steps_per_epoch=4, val_episodes=3, test_episodes=5, eval_meta_batch_size=2
)


def rollouts(world: World, **overrides: Any) -> Rollouts:
    """Two rounds of three trajectories; a bandit is one trajectory."""
    several = dict(rounds=0, trajectories=1) if isinstance(world, Bandits) else dict(rounds=2, trajectories=3)
    return Rollouts(world, **(several | SIZES | overrides))


def navigation(**overrides: Any) -> Rollouts:
    return rollouts(Navigation(6), **overrides)


def arms() -> Rollouts:
    return rollouts(Bandits(3, 8))


def processes(**overrides: Any) -> Rollouts:
    return rollouts(TabularMDP(4, 3, 5), **overrides)
