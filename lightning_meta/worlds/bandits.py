"""Bernoulli bandits: each arm pays 1 with a probability of its own. And what can be known of them without learning.

Those of Duan et al.: "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning" (2016), arXiv:1611.02779,
section 3.1, and the dependent arms of Wang et al.: "Learning to Reinforcement Learn" (2016), arXiv:1611.05763.

Shapes: `K` arms.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys, uniform
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.worlds.actions import Discrete
from lightning_meta.worlds.base import World

GRID = 1001  # retirement rewards that are tried
LIFE = 10.0  # pulls after which a Gittins index stops to look ahead, in units of 1 / (1 - discount)


class Bandits(World):
    """Arms whose chances are uniform in [0, 1]; nothing is seen but what they pay.

    Args:
        arms: K.
        pulls: of a trajectory.
        dependent: two arms, whose chances are p and 1 - p.
    """

    seen_size, dice = 1, 1

    def __init__(self, arms: int = 5, pulls: int = 10, dependent: bool = False) -> None:
        require_at_least(1, pulls=pulls)
        if dependent and arms != 2:
            raise ConfigError(f"dependent=true is about two arms, p and 1 - p, but arms={arms}; set it to 2.")
        self.actions, self.horizon, self.dependent = Discrete(arms), pulls, dependent
        self.name = f"{arms} {'dependent ' * dependent}arms"

    def draw(self, keys: Keys) -> Tensor:
        """The chances `(T, K)`."""
        chances_TK = torch.from_numpy(uniform(keys, self.actions.n)).float()
        return torch.cat([chances_TK[:, :1], 1 - chances_TK[:, :1]], dim=1) if self.dependent else chances_TK

    def start(self, task: Tensor, dice: Tensor) -> Tensor:
        return torch.ones_like(dice)

    def seen(self, state: Tensor) -> Tensor:
        return state

    def step(self, task: Tensor, state: Tensor, action: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reward_B = (dice[:, 0] < task[action]).to(dice.dtype)
        return state, reward_B, torch.zeros_like(reward_B)

    def best(self, task: Tensor, seen: Tensor, left: int) -> Tensor:
        return task.argmax(-1).expand(len(seen))


def bayes_optimal_return(arms: int, pulls: int) -> float:
    """The largest expected reward of so many pulls that any strategy can have: a bound for whatever is learned.

    By backward induction over the beliefs that there are: the multiset of (successes, failures) of the arms, since
    which arm is which does not matter.
    """
    require_at_least(1, arms=arms, pulls=pulls)

    @cache
    def value(arms: tuple[tuple[int, int], ...], left: int) -> float:
        if not left:
            return 0.0
        best = 0.0
        for place in {arm: place for place, arm in enumerate(arms)}.values():
            (won, lost), others = arms[place], arms[:place] + arms[place + 1 :]
            chance = (won + 1) / (won + lost + 2)
            after_win = value(tuple(sorted((*others, (won + 1, lost)))), left - 1)
            after_loss = value(tuple(sorted((*others, (won, lost + 1)))), left - 1)
            best = max(best, chance * (1 + after_win) + (1 - chance) * after_loss)
        return best

    return value(((0, 0),) * arms, pulls)


def gittins_indices(pulls: int, discount: float) -> Tensor:
    """The index `(pulls + 1, pulls + 1)` of an arm that paid s times and did not f times, by s and f.

    It is the sure reward per step for which one would rather stop pulling the arm (Gittins 1979), by backward induction
    for each reward of a grid, `GRID` of them between 0 and 1; where an arm ends to be pulled is rounded up to it.
    """
    if not 0 < discount < 1:
        raise ConfigError(f"discount={discount} must lie between 0 and 1.")
    ahead = pulls + int(LIFE / (1 - discount))
    sure_G = np.linspace(0, 1, GRID)
    indices = np.full((pulls + 1, pulls + 1), np.nan)
    won_N = np.arange(ahead + 1)
    # At the horizon: for ever the better of the sure reward and the mean, which is no longer learned of.
    value_NG = np.maximum(sure_G, ((won_N + 1) / (ahead + 2))[:, None]) / (1 - discount)
    for total in range(ahead - 1, -1, -1):
        chance_N1 = ((np.arange(total + 1) + 1) / (total + 2))[:, None]
        pull_NG = chance_N1 * (1 + discount * value_NG[1:]) + (1 - chance_N1) * discount * value_NG[:-1]
        stop_G = sure_G / (1 - discount)
        if total <= 2 * pulls:
            for won in range(max(total - pulls, 0), min(total, pulls) + 1):
                stops_G = stop_G >= pull_NG[won]
                indices[won, total - won] = sure_G[stops_G.argmax()]
        value_NG = np.maximum(stop_G, pull_NG)
    return torch.from_numpy(indices).float()
