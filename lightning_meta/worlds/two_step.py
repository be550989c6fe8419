"""The two-step task: is a choice repeated because it was rewarded, or because of where it leads?

Wang, Kurth-Nelson, Tirumala, Soyer, Leibo, Munos, Blundell, Kumaran, Botvinick: "Learning to Reinforcement Learn"
(2016), arXiv:1611.05763, section 3.2.3, after Daw, Gershman, Seymour, Dayan, Dolan: "Model-Based Influences on Humans'
Choices and Striatal Prediction Errors" (2011), Neuron.

A trial has two steps. The first action leads to one of two places, mostly to its own, at times to the other's. There
any action is paid, or is not; one of the places pays well and the other badly, and now and then they change roles.
Somebody who is paid after a rare transition should do the other thing next time, if he knows what leads where.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core.sampling import Keys, uniform
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.worlds.actions import Discrete
from lightning_meta.worlds.base import World

START = 0  # where each trial begins; action a mostly leads to place 1 + a


class TwoStep(World):
    """Trials of two steps; what is seen is the place, one of three.

    Args:
        trials: of a trajectory.
        common: how often an action leads to its own place.
        pays: how often the good place pays; the other one pays as often as the good one does not.
        reversal: how often the places change roles, before a trial.
    """

    seen_size, actions, dice = 3, Discrete(2), 2  # where to, or whether it pays; and whether roles change
    name = "two-step task"

    def __init__(self, trials: int = 100, common: float = 0.8, pays: float = 0.9, reversal: float = 0.025) -> None:
        require_at_least(1, trials=trials)
        if not all(0 <= chance <= 1 for chance in (common, pays, reversal)):
            raise ConfigError(f"common={common}, pays={pays} and reversal={reversal} must lie between 0 and 1.")
        self.horizon, self.common, self.pays, self.reversal = 2 * trials, common, pays, reversal

    def draw(self, keys: Keys) -> Tensor:
        """Which place `(T,)`, 1 or 2, is the good one at first."""
        return torch.from_numpy(uniform(keys, 1)[:, 0] < 0.5).long() + 1

    def start(self, task: Tensor, dice: Tensor) -> tuple[Tensor, Tensor]:
        """Where one is, and which place is good."""
        return torch.full_like(dice[:, 0], START, dtype=torch.long), task.expand(len(dice))

    def seen(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return F.one_hot(state[0], self.seen_size)

    def step(
        self, task: Tensor, state: tuple[Tensor, Tensor], action: Tensor, dice: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        place, good = state
        chooses = place == START
        led_to = torch.where(dice[:, 0] < self.common, 1 + action, 2 - action)
        paid = dice[:, 0] < torch.where(place == good, self.pays, 1 - self.pays)
        changes = ~chooses & (dice[:, 1] < self.reversal)
        state = torch.where(chooses, led_to, START), torch.where(changes, 3 - good, good)
        reward = torch.where(chooses, 0.0, paid.to(dice.dtype))
        return state, reward, torch.zeros_like(reward)
