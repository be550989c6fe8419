"""Walk to a goal in the plane that is not shown, as in the code of MAML's authors.

Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), arXiv:1703.03400,
section 5.3.1. The definition is that of their code, not of the text: the reward is minus the distance, not its square;
actions of 1 are moves of 0.1, and larger ones are cut.
"""

import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys, uniform
from lightning_meta.errors import require_at_least
from lightning_meta.worlds.actions import Continuous
from lightning_meta.worlds.base import World

STRIDE = 0.1
NEAR = 0.01  # of the goal in both coordinates ends the walk


class Navigation(World):
    """From the origin to a goal that is uniform in [-0.5, 0.5]^2; what is seen is the place.

    Args:
        horizon: steps of a walk.
    """

    name = "2-D navigation"
    seen_size, dice, actions = 2, 1, Continuous(2)

    def __init__(self, horizon: int = 100) -> None:
        require_at_least(1, horizon=horizon)
        self.horizon = horizon

    def draw(self, keys: Keys) -> Tensor:
        """The goals `(T, 2)`."""
        return torch.from_numpy(uniform(keys, 2, -0.5, 0.5)).float()

    def start(self, task: Tensor, dice: Tensor) -> Tensor:
        return torch.zeros_like(dice[:, :1]).expand(-1, 2)

    def seen(self, state: Tensor) -> Tensor:
        return state

    def step(self, task: Tensor, state: Tensor, action: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place_B2 = state + STRIDE * action.clamp(-1, 1)
        away_B2 = place_B2 - task
        return place_B2, -away_B2.norm(dim=-1), (away_B2.abs() < NEAR).all(-1)

    def best(self, task: Tensor, seen: Tensor, left: int) -> Tensor:
        """Straight on; there in 5 steps at most, since the moves of both coordinates are cut separately."""
        return ((task - seen) / STRIDE).clamp(-1, 1)
