"""Algorithm Distillation: predict what a learner does next, from its whole history, and so learn to learn as it does.

Laskin, Wang, Oh, Parisotto, Spencer, Steigerwald, Strouse, Hansen, Filos, Brooks, Gazeau, Sahni, Singh, Mnih:
"In-context Reinforcement Learning with Algorithm Distillation" (2022), arXiv:2210.14215.

Deviations: the histories are not stored. The source algorithm plays every training trial itself, on dice of the trial.
A row of the network is a whole step, not three; no steps are skipped, so it does not learn faster than its source.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.modules.imitation import ImitationModule
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Actions, World


class AlgorithmDistillation(ImitationModule):
    """Act as a source algorithm would, which a causal Transformer has seen learn in many tasks.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world; `Discrete`.
        source: what is imitated: any `RolloutModule`, such as a player of bandits. It is not trained.
        context: steps of a trial, at most.
        **kwargs: of `ImitationModule`.
    """

    def __init__(
        self, seen_size: int, actions: Actions, source: RolloutModule, context: int = 50, **kwargs: Any
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        self.source = source.requires_grad_(False)
        self.places = nn.Parameter(0.02 * torch.randn(context, self.embed.out_features))

    def teacher(self, task: Any, dice: Dice) -> Any:
        return self.source.start(dice)

    def demonstrate(self, source: Any, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        return self.source.act(source, memory, told, dice)

    def right(self, source: Any, support: Trajectories) -> tuple[Tensor, Any]:
        return support.actions, self.source.adapt(support._replace(actor=source))

    def rows(self, told: Told, seen_before: Tensor | None = None, read: int = 0) -> Tensor:
        """With the place of each step in the trial, by which a learner's progress can be told."""
        rows_BLD = super().rows(told, seen_before, read)
        return rows_BLD + self.places[read : read + rows_BLD.shape[1]]

    def train(self, mode: bool = True) -> Self:
        """The source acts as in a test, always."""
        super().train(mode)
        self.source.eval()
        return self

    def check_world(self, world: World) -> None:
        super().check_world(world)
        self.source.check_world(world)
        self.source.world = world

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rounds = max(data.rounds, data.eval_rounds) + 1
        if rounds * data.world.horizon > len(self.places):
            raise ConfigError(
                f"context={len(self.places)} is shorter than the {rounds} x {data.world.horizon} steps of a trial; set "
                f"model.context to {rounds * data.world.horizon}."
            )
