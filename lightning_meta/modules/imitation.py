"""Base of learners that are taught what to do by whoever plays, or watches, while they train.

Shapes: `L` steps of a trial so far, `B` trajectories, `D` features, `A` actions.
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
from lightning_meta.worlds import Actions, Discrete


class Lesson(NamedTuple):
    """L steps of a trial `(L, B, ...)`, what was to be done in each, and what the teacher has of the trial.

    Whoever is taught does not look at the teacher.
    """

    told: Told
    right: Tensor
    alive: Tensor
    teacher: Any


class Reading(NamedTuple):
    """What the network has read `(B, L, .)` in each layer, and what was seen last `(B, O)`."""

    memories: list[Memory]
    seen: Tensor


class ImitationModule(RolloutModule):
    """A causal Transformer that reads the trial so far and says what to do.

    While it trains somebody else acts, so `train/return` is theirs, and it learns, after each step, what a teacher says
    by cross-entropy. In evaluation it acts itself. The B trajectories of a trial are learners of their own. A subclass
    writes `teacher`, `demonstrate` and `right`.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world; `Discrete`.
        width: of the Transformer.
        layers: of the Transformer.
        heads: of its attention.
        greedy: take the likeliest action; otherwise sample.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        if not isinstance(actions, Discrete):
            raise ConfigError(
                f"{type(self).__name__} says how likely each action is right, but {actions} cannot be counted; take "
                "Discrete."
            )
        self.greedy = greedy
        self.embed = nn.Linear(seen_size + self.told_size, width)
        self.transformer = CausalTransformer(width, layers, heads)
        self.scores = nn.Linear(width, actions.scores)

    # ---- an algorithm writes these three, for ONE task -----------------------------------------------------------

    def teacher(self, task: Any, dice: Dice) -> Any:
        """What a teacher has at the beginning of a trial: any pytree of tensors."""
        raise NotImplementedError

    def demonstrate(self, teacher: Any, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        """Actions in training, as `act`."""
        raise NotImplementedError

    def right(self, teacher: Any, support: Trajectories) -> tuple[Tensor, Any]:
        """What was to be done in each step of a round `(H, B)`, and what the teacher has after it."""
        raise NotImplementedError

    # ---- owned here ----------------------------------------------------------------------------------------------

    def begin(self, task: Any, dice: Dice) -> Lesson:
        told = self.nothing_told(dice)
        return Lesson(told, told.reward.long(), told.reward, self.teacher(task, dice))

    def act(self, lesson: Lesson, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        if self.training:
            return self.demonstrate(lesson.teacher, memory, told, dice)
        scores_BA, reading = self.read(lesson.told, memory, told)
        return scores_BA.argmax(-1) if self.greedy else self.actions.draw(scores_BA, dice), reading

    def read(self, before: Told, memory: Reading | None, told: Told) -> tuple[Tensor, Reading]:
        """Scores `(B, A)` after one more step; at the beginning of a round the rounds before are read again."""
        new = tree_map(lambda leaf: leaf[None], told)
        if memory is None:
            rows_BLD = self.rows(tree_map(lambda earlier, now: torch.cat([earlier, now]), before, new))
            outputs, memories = self.transformer(rows_BLD)
        else:
            rows_BLD = self.rows(new, memory.seen, memory.memories[0][0].shape[-2])
            outputs, memories = self.transformer(rows_BLD, memory.memories)
        return self.scores(outputs[:, -1]), Reading(memories, told.seen)

    def rows(self, told: Told, seen_before: Tensor | None = None, read: int = 0) -> Tensor:
        """What the network is told `(B, L, D)`: each step whole, with what was seen before it and after it.

        So many rows were `read` before these, with `seen_before` in the last of them.
        """
        first = torch.zeros_like(told.seen[0]) if seen_before is None else seen_before
        before = torch.cat([first[None], told.seen[:-1]])
        told_LBI = torch.cat([before, told.action, told.reward[..., None], told.seen, told.fresh[..., None]], dim=-1)
        return self.embed(told_LBI).transpose(0, 1)

    def adapt(self, support: Trajectories) -> Lesson:
        """The lesson so far, and the round with what its teacher says."""
        lesson: Lesson = support.actor
        right, teacher = self.right(lesson.teacher, support)
        new = (support.told, right, support.alive)
        told, right_LB, alive_LB = tree_map(lambda *parts: torch.cat(parts), lesson[:3], new)
        return Lesson(told, right_LB, alive_LB, teacher)

    def query_loss(self, lesson: Lesson, query: Trajectories) -> TaskOutput:
        """Of the whole trial, after each step."""
        whole = self.adapt(query._replace(actor=lesson))
        scores_LBA = self.scores(self.transformer(self.rows(whole.told))[0]).transpose(0, 1)
        losses_LB = F.cross_entropy(scores_LBA.flatten(0, 1), whole.right.flatten(), reduction="none")
        loss = (losses_LB * whole.alive.flatten()).sum() / whole.alive.sum()
        return TaskOutput(loss, query.rewards.sum(0))
