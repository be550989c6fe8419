"""Evolution strategies: the outer update of any learner from what it earns with weights that are disturbed.

Salimans, Ho, Chen, Sidor, Sutskever: "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (2017),
arXiv:1703.03864. With a learner that adapts, it is ES-MAML: Song, Gao, Yang, Choromanski, Pacchiano, Tang: "ES-MAML:
Simple Hessian-Free Meta Learning" (2020), arXiv:1910.01215.

Weights are disturbed in pairs, up and down along a normal direction; half the difference of what the pair earns is
the slope along it. Nothing is differentiated, so neither what chance decides nor how a learner adapts has to be. Both
of a pair, and all pairs of a task, meet the same dice.

Deviations: every task has directions of its own, which its dice decide. Slopes are not replaced by their ranks.
Salimans' and Song's learners adapt not at all or by evolution strategies too; ours as it always does.

Shapes: `P` pairs.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, vjp

from lightning_meta.compat import tree_map
from lightning_meta.core import TaskOutput, map_tasks, trainable
from lightning_meta.core.dice import normal, subkey
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import World

DIE_BITS = 24  # of a die in single precision


class EvolutionStrategies(RolloutModule):
    """Train a learner by what it earns alone. In evaluation it is the learner.

    Args:
        learner: a `RolloutModule` with parameters; its loss is not used.
        pairs: P, of each task.
        deviation: of the normal numbers that weights are disturbed by.
        earns: what counts: `return`, of the last round, or `total_return`, of all rounds.
        **kwargs: of `RolloutModule`.
    """

    def __init__(
        self,
        learner: RolloutModule,
        pairs: int = 4,
        deviation: float = 0.1,
        earns: Literal["return", "total_return"] = "return",
        **kwargs: Any,
    ) -> None:
        super().__init__(learner.seen_size, learner.actions, **kwargs)
        if not any(parameter.requires_grad for parameter in learner.parameters()):
            raise ConfigError(f"{type(learner).__name__} has no parameters that could be disturbed; take a learner.")
        require_at_least(1, pairs=pairs)
        if not deviation > 0:
            raise ConfigError(f"deviation={deviation} must be above 0: weights that do not move have no slope.")
        self.learner, self.pairs, self.deviation, self.earns = learner, pairs, deviation, earns

    def begin(self, task: Any, dice: Dice) -> Any:
        return self.learner.begin(task, dice)

    def act(self, actor: Any, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        return self.learner.act(actor, memory, told, dice)

    def adapt(self, support: Trajectories) -> Any:
        return self.learner.adapt(support)

    def query_loss(self, adapted: Any, query: Trajectories) -> TaskOutput:
        return self.learner.query_loss(adapted, query)

    def forward(self, task: Any, support: Dice, query: Dice) -> Tensor:
        """What one trial earns."""
        return self.earned(super().play_task(task, support, query))

    def earned(self, out: TaskOutput) -> Tensor:
        return (out.preds.mean() if self.earns == "return" else out.logs["total_return"]).detach()

    def play_task(self, task: Any, support: Dice, query: Dice) -> TaskOutput:
        """The loss is minus what is earned; its gradient, minus the slope of that."""
        out = tree_map(Tensor.detach, super().play_task(task, support, query))
        earned = self.earned(out)
        if not (self.training and torch.is_grad_enabled()):
            return out._replace(loss=-earned)
        theta = {f"learner.{name}": value for name, value in trainable(self.learner).items()}
        slopes = self.slopes({name: value.detach() for name, value in theta.items()}, task, support, query)
        moved = torch.stack([(slopes[name] * (value - value.detach())).sum() for name, value in theta.items()]).sum()
        return out._replace(loss=-earned - moved)

    def slopes(self, theta: dict[str, Tensor], task: Any, support: Dice, query: Dice) -> dict[str, Tensor]:
        """Of what a trial earns, by the weights: those of P pairs, on average."""
        key = (query.actor * 2**DIE_BITS).long().sum()  # another one for each trial, since dice are
        keys = subkey(key, torch.arange(len(theta), device=key.device))
        ups = {
            name: normal(keys[place], self.pairs, *value.shape, dtype=value.dtype)
            for place, (name, value) in enumerate(theta.items())
        }

        def play(params: dict[str, Tensor]) -> Tensor:
            return functional_call(self, params, (task, support, query))

        def slope(up: dict[str, Tensor]) -> dict[str, Tensor]:
            # Within a derivative that nobody takes, because a learner adapts what says that it requires a gradient.
            high, low = (
                vjp(play, {name: value + side * up[name] for name, value in theta.items()})[0]
                for side in (self.deviation, -self.deviation)
            )
            return {name: (high - low) / (2 * self.deviation) * part for name, part in up.items()}

        mode = self.played_world().task_mode if self.task_mode == "auto" else self.task_mode
        return tree_map(lambda leaf: leaf.mean(0), map_tasks(slope, ups, mode=mode))

    def check_world(self, world: World) -> None:
        super().check_world(world)
        self.learner.check_world(world)
        self.learner.world = world
