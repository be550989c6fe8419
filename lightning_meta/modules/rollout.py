"""The Lightning seam of reinforcement learning: an algorithm says who acts, and learns from what was recorded.

A rollout is a pure function of who acts, of the task and of the dice. So nothing interacts with the world but the
module, in the training step; and vectorised tasks, exact resume, any number of processes and frozen test tasks are what
they are everywhere.

Shapes: `H` steps, `B` trajectories of one task, `O` numbers that are seen, `R` rounds of adaptation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import TaskOutput, map_tasks
from lightning_meta.core.repairs import repaired
from lightning_meta.datamodules.trials.rollouts import Dice, Rollouts, RolloutTrial
from lightning_meta.errors import ConfigError, DivergenceError
from lightning_meta.metrics import Return
from lightning_meta.modules.base import MetaModule
from lightning_meta.worlds import Actions, World

LOGGED = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100)  # rounds of which the return is


class Told(NamedTuple):
    """What an actor is told before a step of B trajectories.

    Attributes:
        seen: `(B, O)`.
        action: of the step before, as numbers `(B, A)`; zeros before all others.
        reward: of the step before `(B,)`.
        fresh: `(B,)` 1 where a trajectory begins; the step before was of another.
    """

    seen: Tensor
    action: Tensor
    reward: Tensor
    fresh: Tensor

    def numbers(self) -> Tensor:
        """All of it side by side `(..., B, I)`, for a network."""
        return torch.cat([self.seen, self.action, self.reward[..., None], self.fresh[..., None]], dim=-1)


class Trajectories(NamedTuple):
    """What was recorded in a round: constants, but for who acted.

    Attributes:
        actor: what `start` or `adapt` returned. Gradients flow through it.
        told: `(H, B, ...)`.
        actions, rewards: `(H, B, ...)`; no reward after the end of a trajectory.
        alive: `(H, B)` 1 up to the step that ends a trajectory, then 0.
    """

    actor: Any
    told: Told
    actions: Tensor
    rewards: Tensor
    alive: Tensor


class RolloutModule(MetaModule):
    """An algorithm writes `start`, `act`, `adapt` and `query_loss` for ONE task: pure functions that read `self`.

    A trial: whoever `start` names acts in the first round of B trajectories, `adapt` makes of it who acts in the next,
    and `query_loss` judges the last round. The metric `return` is that of this round, `return_k` that of round k, and
    `total_return` the sum over all rounds.

    Args:
        seen_size: O, of the world.
        actions: of the world.
        **kwargs: of `MetaModule`. `task_mode: auto` is the world's: `vmap`, the faster of the two however long rounds
            are, or `loop` where its tasks cannot be stepped together.
    """

    plays = Rollouts

    def __init__(self, seen_size: int, actions: Actions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.measure_by(Return())
        self.seen_size, self.actions = seen_size, actions
        self.world: World | None = None  # the datamodule's

    @property
    def told_size(self) -> int:
        """How many numbers an actor is told before a step, I: see `Told.numbers`."""
        return self.seen_size + self.actions.size + 2

    def nothing_told(self, dice: Dice) -> Told:
        """What was told in no step of B trajectories `(0, B, ...)`: a trial so far, before it begins."""
        sizes = (self.seen_size,), (self.actions.size,), (), ()
        return Told(*(dice.world.new_zeros(0, dice.world.shape[1], *size) for size in sizes))

    # ---- an algorithm writes these four, for ONE task ------------------------------------------------------------

    def start(self, dice: Dice) -> Any:
        """Who acts in the first round, of which these are the dice: any pytree of tensors."""
        raise NotImplementedError

    def act(self, actor: Any, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        """Actions `(B, ...)` by dice `(B, A)`, and what to remember until the next step of the round.

        Nothing here is differentiated. `memory` is None in the first step.
        """
        raise NotImplementedError

    def adapt(self, support: Trajectories) -> Any:
        """From who acted in a round, `support.actor`, to who acts in the next."""
        raise NotImplementedError

    def query_loss(self, adapted: Any, query: Trajectories) -> TaskOutput:
        """The loss whose gradient is the meta-update; `preds` are the returns `(B,)`."""
        raise NotImplementedError

    # ---- owned here ----------------------------------------------------------------------------------------------

    def begin(self, task: Any, dice: Dice) -> Any:
        """Who acts in the first round. To look at the task would be to cheat, as `Oracle` does."""
        return self.start(dice)

    def play_task(self, task: Any, support: Dice, query: Dice) -> TaskOutput:
        """The rounds of one trial."""
        return self.play_rounds(task, support, query)[0]

    def play_rounds(self, task: Any, support: Dice, query: Dice) -> tuple[TaskOutput, list[Trajectories]]:
        """The same, and what was recorded of every round."""
        actor = self.begin(task, query)
        rounds: list[Trajectories] = []
        for dice in zip(*support, strict=True):
            rounds.append(self.collect(actor, task, Dice(*dice), rounds[-1] if rounds else None))
            actor = self.adapt(rounds[-1])
        rounds.append(self.collect(actor, task, query, rounds[-1] if rounds else None))
        out = self.query_loss(actor, rounds[-1])
        returns = [round.rewards.sum(0).mean() for round in rounds]
        shown = {k: value for k, value in enumerate(returns) if k in LOGGED or k == len(returns) - 1}
        logs = {f"return_{k}": value for k, value in shown.items()} | {"total_return": torch.stack(returns).sum()}
        return out._replace(logs=logs | out.logs), rounds

    @torch.no_grad()
    def collect(self, actor: Any, task: Any, dice: Dice, before: Trajectories | None = None) -> Trajectories:
        """Let `actor` act for a round; `before` is the round before it."""
        world = self.played_world()
        # A copy without gradients: no reward may be differentiated by the action that led to it.
        constant, memory, steps = tree_map(Tensor.detach, actor), None, []
        state, alive = world.start(task, dice.world[0]), torch.ones_like(dice.world[0, :, 0])
        action, reward, fresh = alive.new_zeros(len(alive), self.actions.size), torch.zeros_like(alive), alive
        if before is not None:
            action, reward = self.actions.encode(before.actions[-1]).to(alive.dtype), before.rewards[-1]
        for of_world, of_actor in zip(*dice, strict=True):
            told = Told(world.seen(state).to(alive.dtype), action, reward, fresh)
            taken, memory = self.act(constant, memory, told, of_actor)
            state, reward, over = world.step(task, state, taken, of_world)
            reward = torch.where(alive > 0, reward, 0.0)
            steps.append((told, taken, reward, alive))
            action, fresh = self.actions.encode(taken).to(alive.dtype), torch.zeros_like(alive)
            alive = alive * ~over.bool()
        return Trajectories(actor, *tree_map(lambda *leaves: torch.stack(leaves), *steps))

    def played_world(self) -> World:
        if self.world is None:
            raise ConfigError(
                f"{type(self).__name__} acts in the world of its data; give it a Trainer with Rollouts, or set its "
                "world."
            )
        return self.world

    def measure(self, tasks: RolloutTrial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.measured(self._map(self.play_task, tasks))

    def measured(self, out: TaskOutput) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `measure` returns of trials that were played, `(T, ...)`."""
        self._check_rewards(out.preds)
        values = {"loss": out.loss, self.metric.name: self.metric.per_episode(out.preds, out.preds), **out.logs}
        return values, {"preds": out.preds}

    def record(self, tasks: RolloutTrial) -> list[Trajectories]:
        """What was recorded of every round of T trials, `(T, H, B, ...)`, but for who acted."""
        return self._map(lambda *trial: [played._replace(actor=()) for played in self.play_rounds(*trial)[1]], tasks)

    def _map(self, fn: Callable[..., Any], tasks: tuple[Any, ...]) -> Any:
        mode = self.played_world().task_mode if self.task_mode == "auto" else self.task_mode
        try:
            with repaired(self):
                return map_tasks(fn, *tasks, mode=mode, chunk_size=self.task_chunk_size)
        except RuntimeError as error:
            if mode == "vmap" and str(error).startswith("vmap:"):
                raise ConfigError(
                    f"{type(self).__name__} in {type(self.world).__name__} cannot be vectorised over tasks; set "
                    f"model.task_mode to loop, or do without: {str(error).partition('. ')[0]}."
                ) from error
            raise

    def _check_rewards(self, returns_TB: Tensor) -> None:
        if not returns_TB.isfinite().all():
            if all(parameter.isfinite().all() for parameter in self.parameters()):
                raise ConfigError(
                    f"{type(self.world).__name__} gave a reward that is not finite, though the weights of "
                    f"{type(self).__name__} are; mend the world's step, or lower the rate of an inner loop."
                )
            raise DivergenceError(
                f"the weights of {type(self).__name__} are not finite any more; lower its learning rate."
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.trainer.precision not in ("32-true", "64-true"):
            raise ConfigError(
                f"precision={self.trainer.precision} would round the ratios of probabilities that are near 1; take "
                "32-true."
            )
        if isinstance(datamodule, Rollouts):
            self.check_world(datamodule.world)
            self.world = datamodule.world

    def check_world(self, world: World) -> None:
        """Raise `ConfigError` when this algorithm cannot act in a world."""
        if world.actions != self.actions:
            raise ConfigError(
                f"{type(self).__name__} takes actions {self.actions}, but those of {world.name} are {world.actions}; "
                "set model.actions to the same."
            )
        if world.seen_size != self.seen_size:
            raise ConfigError(
                f"{type(self).__name__} sees seen_size={self.seen_size} numbers, but {world.name} shows "
                f"{world.seen_size}; set model.seen_size to {world.seen_size}."
            )
