"""Decision-Pretrained Transformer: from what happened in a task, say what somebody would do who knows it.

Lee, Xie, Pacchiano, Chandak, Finn, Nachum, Brunskill: "Supervised Pretraining Can Learn In-Context Reinforcement
Learning" (2023), arXiv:2306.14892.

Training is no reinforcement learning: chance plays, and the network is taught the best action by cross-entropy, after
each step. What it learns is how likely each action is the best, given what was seen, so to act by it is Thompson
sampling (their theorem 1), for any prior that tasks can be drawn from.

Deviations: in training a trajectory takes each action with a frequency of its own, from a Dirichlet distribution; the
paper's has such a distribution in part and a single action for the rest. The state that is asked about is the one where
the trajectory is.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.modules.imitation import ImitationModule
from lightning_meta.modules.rollout import Told, Trajectories
from lightning_meta.worlds import Actions, World


class DPT(ImitationModule):
    """Act by the chances that each action is the best, which a causal Transformer reads from the trial so far.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world; `Discrete`.
        concentration: of the Dirichlet distribution of how often training takes each action; below 1, trajectories
            take few of them.
        **kwargs: of `ImitationModule`.
    """

    def __init__(self, seen_size: int, actions: Actions, concentration: float = 1.0, **kwargs: Any) -> None:
        super().__init__(seen_size, actions, **kwargs)
        if not concentration > 0:
            raise ConfigError(f"concentration={concentration} must be above 0.")
        self.concentration = concentration

    def teacher(self, task: Any, dice: Dice) -> Any:
        return task

    def demonstrate(self, task: Any, counts_BA: Tensor | None, told: Told, dice: Tensor) -> tuple[Tensor, Tensor]:
        """Polya's urn: actions are drawn as often as they were, which makes their frequencies Dirichlet."""
        if counts_BA is None:
            counts_BA = dice.new_full((len(dice), self.actions.n), self.concentration)
        taken_B = self.actions.draw(counts_BA.log(), dice)
        return taken_B, counts_BA + self.actions.encode(taken_B)

    def right(self, task: Any, support: Trajectories) -> tuple[Tensor, Any]:
        world, steps = self.played_world(), len(support.alive)
        return torch.stack([world.best(task, seen, steps - step) for step, seen in enumerate(support.told.seen)]), task

    def check_world(self, world: World) -> None:
        super().check_world(world)
        if type(world).best is World.best:
            raise ConfigError(f"DPT is taught by somebody who knows the task; write the method `best` of {world.name}.")
