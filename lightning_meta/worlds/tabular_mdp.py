"""Decision processes of few states, drawn at random.

Those of Osband, Russo, Van Roy: "(More) Efficient Reinforcement Learning via Posterior Sampling" (2013),
arXiv:1306.0940, as Duan et al.: "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016),
arXiv:1611.02779, use them.

Shapes: `S` states, `A` actions.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys, normal, subkeys, uniform
from lightning_meta.errors import require_at_least
from lightning_meta.worlds.actions import Discrete, one_hot
from lightning_meta.worlds.base import World


class Process(NamedTuple):
    """Chances of the next state `(S, A, S)` and mean rewards `(S, A)`."""

    moves: Tensor
    rewards: Tensor


class TabularMDP(World):
    """Next states by chances from a flat Dirichlet distribution, rewards normal about means that are normal about 1.

    Every episode starts in the first state.

    Args:
        states: S.
        actions: A.
        horizon: steps of an episode.
    """

    dice = 2  # the next state, and the noise of the reward

    def __init__(self, states: int = 10, actions: int = 5, horizon: int = 10) -> None:
        require_at_least(1, states=states, horizon=horizon)
        self.seen_size, self.actions, self.horizon = states, Discrete(actions), horizon
        self.name = f"MDPs of {states} states"

    def draw(self, keys: Keys) -> Process:
        states, actions = self.seen_size, self.actions.n
        of_moves, of_rewards = subkeys(keys, range(2)).T
        # Exponential numbers in parts of their sum are Dirichlet.
        parts = torch.from_numpy(-np.log1p(-uniform(of_moves, states * actions * states)))
        parts_TSAS = parts.view(-1, states, actions, states)
        rewards_TSA = torch.from_numpy(1 + normal(of_rewards, states * actions)).view(-1, states, actions)
        return Process((parts_TSAS / parts_TSAS.sum(-1, keepdim=True)).float(), rewards_TSA.float())

    def start(self, task: Process, dice: Tensor) -> Tensor:
        return torch.zeros_like(dice[:, 0], dtype=torch.long)

    def seen(self, state: Tensor) -> Tensor:
        return one_hot(state, self.seen_size)

    def step(self, task: Process, state: Tensor, action: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reward_B = task.rewards[state, action] + torch.special.ndtri(dice[:, 1])
        below_BS = task.moves[state, action].cumsum(-1) < dice[:, :1]
        return below_BS.sum(-1).clamp_max(self.seen_size - 1), reward_B, torch.zeros_like(reward_B)

    def best(self, task: Process, seen: Tensor, left: int) -> Tensor:
        """By value iteration."""
        return (seen.to(task.rewards.dtype) @ action_values(task, left)).argmax(-1)


def action_values(task: Process, left: int) -> Tensor:
    """The largest expected sum of the rewards of `left` steps `(S, A)`, by the first action."""
    values_SA = task.rewards
    for _ in range(left - 1):
        values_SA = task.rewards + task.moves @ values_SA.max(-1).values
    return values_SA
