"""Bases of players that have no parameters, for comparison with those that learn.

Shapes: `B` trajectories, `K` arms.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.core import TaskOutput
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Bandits, Discrete, World


class PlayerModule(RolloutModule):
    """Base of players without parameters: round after round they do the same. A subclass writes `act`."""

    def start(self, dice: Dice) -> Tensor:
        return dice.world.new_zeros(())

    def adapt(self, support: Trajectories) -> Any:
        return support.actor

    def query_loss(self, adapted: Any, query: Trajectories) -> TaskOutput:
        returns_B = query.rewards.sum(0)
        return TaskOutput(-returns_B.mean(), returns_B)


class BanditModule(PlayerModule):
    """Base of players that count what each arm paid. A subclass writes `scores`; the arm of the largest is pulled.

    Args:
        arms: of the world.
        **kwargs: of `MetaModule`.
    """

    def __init__(self, arms: int, **kwargs: Any) -> None:
        super().__init__(1, Discrete(arms), **kwargs)

    def scores(self, won_BK: Tensor, lost_BK: Tensor, dice: Tensor) -> Tensor:
        """How good the arms are `(B, K)` that paid, and did not, so many times."""
        raise NotImplementedError

    def act(self, actor: Tensor, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        won_BK, lost_BK = memory or (torch.zeros_like(told.action), torch.zeros_like(told.action))
        reward_B1 = told.reward[:, None]
        won_BK, lost_BK = won_BK + told.action * reward_B1, lost_BK + told.action * (1 - reward_B1)
        return self.scores(won_BK, lost_BK, dice).argmax(-1), (won_BK, lost_BK)

    def check_world(self, world: World) -> None:
        super().check_world(world)
        if not isinstance(world, Bandits):
            raise ConfigError(f"{type(self).__name__} counts what Bernoulli arms pay; take the data of bandits.")
