"""Two ways to learn in the two-step task, which what is repeated tells apart: by habit, and by a plan.

Daw, Gershman, Seymour, Dayan, Dolan: "Model-Based Influences on Humans' Choices and Striatal Prediction Errors" (2011),
Neuron.

Deviations: the world has one decision in a trial, so habits need no values of the second step.

Shapes: `B` trajectories.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.errors import ConfigError
from lightning_meta.modules.player import PlayerModule
from lightning_meta.modules.rollout import Told
from lightning_meta.worlds import Discrete, TwoStep, World
from lightning_meta.worlds.two_step import START


class ModelFree(PlayerModule):
    """A value for each of the two choices, moved towards what followed it, wherever that was earned.

    Args:
        rate: how far a value is moved.
        sharpness: of the softmax of the values.
        **kwargs: of `MetaModule`.
    """

    def __init__(self, rate: float = 0.4, sharpness: float = 5.0, **kwargs: Any) -> None:
        super().__init__(3, Discrete(2), **kwargs)
        if not 0 < rate <= 1:
            raise ConfigError(f"rate={rate} must lie above 0 and be at most 1.")
        self.rate, self.sharpness = rate, sharpness

    def credited(self, told: Told) -> Tensor:
        """What a reward will be put down to `(B, 2)`, told after the choice."""
        return told.action

    def worth(self, values_B2: Tensor) -> Tensor:
        """Of the choices `(B, 2)`."""
        return values_B2

    def act(self, actor: Tensor, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        values_B2, credited_B2 = memory or (torch.full_like(told.action, 0.5), torch.zeros_like(told.action))
        choosing_B1 = told.seen[:, START, None]
        # A trial is over when one is at the start again; what it paid is told there.
        moved_B2 = values_B2 + self.rate * credited_B2 * (told.reward[:, None] - values_B2)
        values_B2 = torch.where(choosing_B1 > 0, moved_B2, values_B2)
        credited_B2 = torch.where(choosing_B1 > 0, 0.0, self.credited(told))
        return self.actions.draw(self.sharpness * self.worth(values_B2), dice), (values_B2, credited_B2)

    def check_world(self, world: World) -> None:
        super().check_world(world)
        if not isinstance(world, TwoStep):
            raise ConfigError(f"{type(self).__name__} chooses in the two-step task; take the data of TwoStep.")


class ModelBased(ModelFree):
    """A value for each of the two places, and knowledge of how often a choice leads to which.

    Same arguments as `ModelFree`.
    """

    def credited(self, told: Told) -> Tensor:
        return told.seen[:, 1:]

    def worth(self, values_B2: Tensor) -> Tensor:
        world = self.played_world()
        assert isinstance(world, TwoStep)  # see check_world
        return world.common * values_B2 + (1 - world.common) * values_B2.flip(-1)
