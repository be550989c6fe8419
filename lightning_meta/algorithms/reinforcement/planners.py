"""Players that plan in decision processes of few states, of which they know how they were drawn.

They are the rows beside a meta-learner in table 2 of Duan et al.: "RL^2: Fast Reinforcement Learning via Slow
Reinforcement Learning" (2016), arXiv:1611.02779, on the same tasks.

Deviations: where the last step of an episode leads is not seen, so it is not counted.

Shapes: `S` states, `A` actions, `L` steps of a trial so far.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core.dice import normal, subkey, uniform
from lightning_meta.errors import ConfigError
from lightning_meta.modules.player import PlannerModule, Seen
from lightning_meta.modules.rollout import Told
from lightning_meta.worlds.tabular_mdp import Process


class Greedy(PlannerModule):
    """Plans in the mean of the posterior; at times, does anything.

    Args:
        states: of the world.
        actions: of the world.
        epsilon: how often it is any action.
        **kwargs: of `MetaModule`.
    """

    def __init__(self, states: int, actions: int, epsilon: float = 0.0, **kwargs: Any) -> None:
        super().__init__(states, actions, **kwargs)
        if not 0 <= epsilon <= 1:
            raise ConfigError(f"epsilon={epsilon} must lie between 0 and 1.")
        self.epsilon = epsilon

    def believed(self, seen: Seen, dice: Tensor) -> Process:
        counts_SAS = 1 + self.summed(seen.pairs, came_to(seen, self.seen_size))
        return Process(counts_SAS / counts_SAS.sum(-1, keepdim=True), rewards(self, seen)[0])

    def act(self, actor: Any, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        planned_B, memory = super().act(actor, memory, told, dice)
        if not self.epsilon:
            return planned_B, memory
        any_B = (dice[:, 0] / self.epsilon * self.actions.n).long()
        return torch.where(dice[:, 0] < self.epsilon, any_B, planned_B), memory


class PSRL(PlannerModule):
    """Posterior sampling: plans in a process that is drawn from the posterior before each episode.

    Osband, Russo, Van Roy: "(More) Efficient Reinforcement Learning via Posterior Sampling" (2013), arXiv:1306.0940.

    Same arguments as `PlannerModule`.
    """

    def believed(self, seen: Seen, dice: Tensor) -> Process:
        of_prior, of_seen, of_rewards = subkey((dice.double() * 2**53).long(), torch.arange(3, device=dice.device))
        states, actions = self.seen_size, self.actions.n
        # A Dirichlet draw is of gamma numbers in parts of their sum; those of whole numbers are sums of exponential
        # ones: one of the prior for each next state, and one for each time that it was seen.
        prior_SAS = exponential(of_prior, states, actions, states).to(dice.dtype)
        seen_LS = came_to(seen, states) * exponential(of_seen, len(seen.pairs), 1).to(dice.dtype)
        parts_SAS = prior_SAS + self.summed(seen.pairs, seen_LS)
        mean_SA, count_SA = rewards(self, seen)
        drawn_SA = mean_SA + normal(of_rewards, states, actions, dtype=dice.dtype) / (1 + count_SA).sqrt()
        return Process(parts_SAS / parts_SAS.sum(-1, keepdim=True), drawn_SA)


def came_to(seen: Seen, states: int) -> Tensor:
    """The next states `(L, S)`, one of which is 1; none where it was not seen."""
    return F.one_hot(seen.states, states + 1)[:, :states].to(seen.rewards.dtype)


def rewards(planner: PlannerModule, seen: Seen) -> tuple[Tensor, Tensor]:
    """Means of the posterior of rewards that are normal about normal means, all variances 1; and how many were paid."""
    both_L2 = torch.stack([seen.rewards, torch.ones_like(seen.rewards)], dim=-1)
    sum_SA, count_SA = planner.summed(seen.pairs, both_L2).unbind(-1)
    return (1 + sum_SA) / (1 + count_SA), count_SA


def exponential(key: Tensor, *shape: int) -> Tensor:
    return -(-uniform(key, *shape, dtype=torch.float64)).log1p()
