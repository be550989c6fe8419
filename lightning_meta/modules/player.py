"""Bases of players that have no parameters, for comparison with those that learn.

Shapes: `B` trajectories, `K` arms; `S` states and `A` actions of a decision process, `L` steps of a trial so far.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.core import TaskOutput
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Bandits, Discrete, TabularMDP, World
from lightning_meta.worlds.tabular_mdp import Process, action_values


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


class Seen(NamedTuple):
    """What was seen of a decision process, `(L, B)`: pairs of state and action by number, and what came of them.

    Attributes:
        pairs: `state * A + action`.
        states: the next ones; S where it was not seen, after the last step of an episode.
        rewards: what was paid.
    """

    pairs: Tensor
    states: Tensor
    rewards: Tensor


class PlannerModule(PlayerModule):
    """Base of players that plan: before each episode they believe in a decision process, and do what is best in it.

    A subclass writes `believed`. Each of the B trajectories is a learner of its own.

    Args:
        states: S, of the world.
        actions: A, of the world.
        **kwargs: of `MetaModule`.
    """

    def __init__(self, states: int, actions: int, **kwargs: Any) -> None:
        super().__init__(states, Discrete(actions), **kwargs)

    def believed(self, seen: Seen, dice: Tensor) -> Process:
        """The process to plan in, from what one trajectory has seen `(L,)` and its dice `()`."""
        raise NotImplementedError

    def start(self, dice: Dice) -> Any:
        nothing = dice.world.new_zeros(0, dice.world.shape[1])
        return Seen(nothing.long(), nothing.long(), nothing)

    def act(self, actor: Any, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        world = self.played_world()
        process, step = memory or (torch.vmap(self.believed, in_dims=(1, 0))(actor, dice[:, 0]), 0)
        values_BSA = torch.vmap(action_values, in_dims=(0, None))(process, world.horizon - step)
        return (told.seen[:, None] @ values_BSA).squeeze(1).argmax(-1), (process, step + 1)

    def adapt(self, support: Trajectories) -> Any:
        states_HB = support.told.seen.argmax(-1)
        unseen_1B = torch.full_like(states_HB[:1], self.seen_size)
        pairs_HB = states_HB * self.actions.n + support.actions
        new = Seen(pairs_HB, torch.cat([states_HB[1:], unseen_1B]), support.rewards)
        return Seen(*(torch.cat(parts) for parts in zip(support.actor, new, strict=True)))

    def summed(self, pairs_L: Tensor, values_LX: Tensor) -> Tensor:
        """The sums of values `(L, X)` by pair, `(S, A, X)`."""
        states, actions = self.seen_size, self.actions.n
        zeros = values_LX.new_zeros(states * actions, values_LX.shape[1])
        return zeros.index_add(0, pairs_L, values_LX).view(states, actions, -1)

    def check_world(self, world: World) -> None:
        super().check_world(world)
        if not isinstance(world, TabularMDP):
            raise ConfigError(f"{type(self).__name__} plans in decision processes of few states; take TabularMDP.")
