"""Decision-Pretrained Transformer: from what happened in a task, say what somebody would do who knows it.

Lee, Xie, Pacchiano, Chandak, Finn, Nachum, Brunskill: "Supervised Pretraining Can Learn In-Context Reinforcement
Learning" (2023), arXiv:2306.14892.

Training is no reinforcement learning: chance plays, and the network is taught the best action by cross-entropy, after
each step. What it learns is how likely each action is the best, given what was seen, so to act by it is Thompson
sampling (their theorem 1), for any prior that tasks can be drawn from.

Deviations: in training a trajectory takes each action with a frequency of its own, from a Dirichlet distribution; the
paper's has such a distribution in part and a single action for the rest. The state that is asked about is the one where
the trajectory is.

Shapes: `L` steps of a trial so far, `B` trajectories, `I` numbers that the network is told of a step.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.compat import tree_map
from lightning_meta.core import TaskOutput
from lightning_meta.core.transformer import CausalTransformer, Memory
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Actions, Discrete, World


class Lesson(NamedTuple):
    """L steps of a trial `(L, B, ...)` and what would have been best in each; the task, which only a teacher reads."""

    told: Told
    best: Tensor
    alive: Tensor
    task: Any


class Reading(NamedTuple):
    """What the network has read `(B, L, .)` in each layer, and what was seen last `(B, O)`."""

    memories: list[Memory]
    seen: Tensor


class DPT(RolloutModule):
    """Act by the chances that each action is the best, which a causal Transformer reads from the trial so far.

    Training plays by chance, so `train/return` says nothing; the B trajectories of a trial are learners of their own.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world; `Discrete`.
        width: of the Transformer.
        layers: of the Transformer.
        heads: of its attention.
        greedy: take the likeliest action, where the paper's bandits do; otherwise sample.
        concentration: of the Dirichlet distribution of how often training takes each action; below 1, trajectories
            take few of them.
        **kwargs: of `RolloutModule`.
    """

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        width: int = 32,
        layers: int = 2,
        heads: int = 2,
        greedy: bool = False,
        concentration: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        if not isinstance(actions, Discrete):
            raise ConfigError(f"DPT says how likely each action is the best, which {actions} cannot be; take Discrete.")
        if not concentration > 0:
            raise ConfigError(f"concentration={concentration} must be above 0.")
        self.greedy, self.concentration = greedy, concentration
        self.embed = nn.Linear(2 * seen_size + actions.size + 2, width)
        self.transformer = CausalTransformer(width, layers, heads)
        self.scores = nn.Linear(width, actions.scores)

    def begin(self, task: Any, dice: Dice) -> Lesson:
        """The task is for whoever teaches; `act` does not look at it."""
        return self.start(dice)._replace(task=task)

    def start(self, dice: Dice) -> Lesson:
        nothing_LB = dice.world.new_zeros(0, dice.world.shape[1])
        told = Told(*(
            nothing_LB.new_zeros(*nothing_LB.shape, *size) for size in ((self.seen_size,), (self.actions.size,), (), ())
        ))  # fmt: skip
        return Lesson(told, nothing_LB.long(), nothing_LB, ())

    def act(self, lesson: Lesson, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        if self.training:
            return self.explore(memory, dice)
        scores_BA, reading = self.read(lesson.told, memory, told)
        return scores_BA.argmax(-1) if self.greedy else self.actions.draw(scores_BA, dice), reading

    def explore(self, counts_BA: Tensor | None, dice: Tensor) -> tuple[Tensor, Tensor]:
        """Polya's urn: actions are drawn as often as they were, which makes their frequencies Dirichlet."""
        if counts_BA is None:
            counts_BA = dice.new_full((len(dice), self.actions.n), self.concentration)
        taken_B = self.actions.draw(counts_BA.log(), dice)
        return taken_B, counts_BA + self.actions.encode(taken_B)

    def read(self, before: Told, memory: Reading | None, told: Told) -> tuple[Tensor, Reading]:
        """Scores `(B, A)` after one more step; at the beginning of a round the rounds before are read again."""
        new, seen_before = tree_map(lambda leaf: leaf[None], told), memory.seen[None] if memory else None
        if memory is None:
            new = tree_map(lambda earlier, now: torch.cat([earlier, now]), before, new)
        outputs, memories = self.transformer(self.rows(new, seen_before), memory.memories if memory else None)
        return self.scores(outputs[:, -1]), Reading(memories, told.seen)

    def rows(self, told: Told, seen_before: Tensor | None = None) -> Tensor:
        """What the network is told `(B, L, D)`: each step whole, with what was seen before it and after it."""
        first = torch.zeros_like(told.seen[:1]) if seen_before is None else seen_before
        before = torch.cat([first, told.seen[:-1]])
        told_LBI = torch.cat([before, told.action, told.reward[..., None], told.seen, told.fresh[..., None]], dim=-1)
        return self.embed(told_LBI).transpose(0, 1)

    def adapt(self, support: Trajectories) -> Lesson:
        """The lesson so far, and the round with what its teacher says."""
        lesson: Lesson = support.actor
        best = [
            self.played_world().best(lesson.task, seen, len(support.alive) - step)
            for step, seen in enumerate(support.told.seen)
        ]
        new = (support.told, torch.stack(best), support.alive)
        told, best_LB, alive_LB = tree_map(lambda *parts: torch.cat(parts), lesson[:3], new)
        return Lesson(told, best_LB, alive_LB, lesson.task)

    def query_loss(self, lesson: Lesson, query: Trajectories) -> TaskOutput:
        """Of the whole trial, after each step."""
        whole = self.adapt(query._replace(actor=lesson))
        scores_LBA = self.scores(self.transformer(self.rows(whole.told))[0]).transpose(0, 1)
        losses_LB = F.cross_entropy(scores_LBA.flatten(0, 1), whole.best.flatten(), reduction="none")
        loss = (losses_LB * whole.alive.flatten()).sum() / whole.alive.sum()
        return TaskOutput(loss, query.rewards.sum(0))

    def check_world(self, world: World) -> None:
        super().check_world(world)
        if type(world).best is World.best:
            raise ConfigError(f"DPT is taught by somebody who knows the task; write the method `best` of {world.name}.")
