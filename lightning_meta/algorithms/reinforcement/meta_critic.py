"""Meta-critic networks: one critic for all tasks, which teaches a new actor in each.

Sung, Zhang, Xiang, Hospedales, Yang: "Learning to Learn: Meta-Critic Networks for Sample Efficient Learning" (2017),
arXiv:1706.09529.

A recurrent network reads what was played and says in a few numbers z which task it is; the critic tells the value of
an action there. An actor starts from random weights in each task and climbs what the critic says, for as many steps
as it likes: no reward is needed for them. Actors forget; the critic and the reader are learned.

Deviations: the actor climbs its expected value over all actions, where the paper samples them: it is the same gradient,
without the noise. The reader reads whole rounds, not the last steps. On the cart-pole the authors' code replaces the
critic of actions by one of states; here it is the paper's.

Shapes: `H` steps, `B` trajectories, `A` actions, `Z` numbers of a task, `U` units of the reader.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones.mlp import MLP
from lightning_meta.backbones.recurrent import LSTMCell
from lightning_meta.core import Adam, Params, TaskOutput, unroll
from lightning_meta.core.dice import subkey, uniform
from lightning_meta.core.policy_gradient import returns_to_go
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Actions, Discrete


class Actor(NamedTuple):
    """An actor `weights`, what the critic knows of the task `(Z,)`, and how wrong it was: a sum over so many steps."""

    weights: Params
    task: Tensor
    errors: Tensor
    steps: Tensor


class MetaCritic(RolloutModule):
    """Learn a critic that tells actors of new tasks what their actions are worth.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world, `Discrete`.
        actor_hidden: units of each hidden layer of an actor.
        critic_hidden: units of each hidden layer of the critic.
        reader_hidden: units of the LSTM that reads what was played.
        task_size: Z.
        inner_lr: step size of the actors' Adam.
        inner_steps: of an actor after each round.
        eval_inner_steps: the same in validation and test. None: as in training.
        discount: of the rewards whose sum the critic tells; 0: the reward of the action alone.
        **kwargs: of `RolloutModule`.
    """

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        actor_hidden: Sequence[int] = (40, 40),
        critic_hidden: Sequence[int] = (80, 80),
        reader_hidden: int = 30,
        task_size: int = 3,
        inner_lr: float = 0.01,
        inner_steps: int = 10,
        eval_inner_steps: int | None = None,
        discount: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        if not isinstance(actions, Discrete):
            raise ConfigError(f"MetaCritic tells the value of each action, but {actions} are not a few; take Discrete.")
        if not 0 <= discount <= 1:
            raise ConfigError(f"discount={discount} must lie between 0 and 1.")
        require_at_least(0, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        self.discount, self.inner_optimizer, self.inner_steps = discount, Adam(inner_lr), inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.sizes = [*pairwise([seen_size, *actor_hidden, actions.scores])]  # of an actor's layers
        self.reader, self.task = (
            LSTMCell(seen_size + actions.size + 1, reader_hidden),
            nn.Linear(reader_hidden, task_size),
        )
        critic = MLP(seen_size + task_size, critic_hidden)
        self.critic = nn.Sequential(critic, nn.Linear(critic.out_features, actions.n))

    def start(self, dice: Dice) -> Actor:
        """A new actor, whose weights are as random as the dice; and a critic that knows nothing of the task."""
        first, second = ((die[0, 0, 0].double() * 2**24).long() for die in dice)
        key, weights = (first << 24) + second, {}
        for number, (inputs, outputs) in enumerate(self.sizes):
            for place, (name, shape) in enumerate({"weight": (outputs, inputs), "bias": (outputs,)}.items()):
                draws = uniform(subkey(subkey(key, torch.tensor(number)), torch.tensor(place)), *shape)
                weights[f"{number}.{name}"] = ((2 * draws - 1) * inputs**-0.5).to(dice.actor)
        nothing = dice.world.new_zeros(())
        return Actor(weights, self.task(dice.world.new_zeros(self.reader.hidden)), nothing, nothing)

    def scores(self, weights: Params, seen: Tensor) -> Tensor:
        """The logits of an actor."""
        for number in range(len(self.sizes)):
            seen = F.linear(F.relu(seen) if number else seen, weights[f"{number}.weight"], weights[f"{number}.bias"])
        return seen

    def act(self, actor: Actor, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        return self.actions.draw(self.scores(actor.weights, told.seen), dice), memory

    def read(self, played: Trajectories) -> Tensor:
        """Which task it is `(Z,)`: the mean of what the trajectories say by themselves."""
        actions_HBA = self.actions.encode(played.actions).to(played.rewards.dtype)
        parts_HBI = torch.cat([played.told.seen, actions_HBA, played.rewards[..., None]], dim=-1)
        hidden_BU, cell_BU = self.reader.zero_state(parts_HBI[0])
        for part_BI, alive_B in zip(parts_HBI, played.alive, strict=True):
            read, goes_on = self.reader(part_BI, (hidden_BU, cell_BU)), alive_B[:, None] > 0
            hidden_BU = torch.where(goes_on, read[0], hidden_BU)
            cell_BU = torch.where(goes_on, read[1], cell_BU)
        return self.task(hidden_BU).mean(0)

    def values(self, task: Tensor, seen: Tensor) -> Tensor:
        """What the critic says of all actions, `(..., A)`."""
        inputs = torch.cat([seen, task.expand(*seen.shape[:-1], -1)], dim=-1)
        return self.critic(inputs.flatten(0, -2)).unflatten(0, inputs.shape[:-1])

    def errors(self, task: Tensor, played: Trajectories) -> Tensor:
        """The squared errors of the critic in a round, summed up."""
        values_HBA = self.values(task, played.told.seen)
        values_HB = values_HBA.gather(-1, played.actions[..., None]).squeeze(-1)
        returns_HB = returns_to_go(played.rewards, self.discount)
        return ((values_HB - returns_HB).square() * played.alive).sum()

    def adapt(self, support: Trajectories) -> Actor:
        """The critic reads the round, and the actor climbs what it says of the states that were seen."""
        before: Actor = support.actor
        task = self.read(support)
        values_HBA = self.values(task, support.told.seen).detach()

        def loss(weights: Params) -> Tensor:
            chances_HBA = self.scores(weights, support.told.seen).softmax(-1)
            return -((chances_HBA * values_HBA).sum(-1) * support.alive).sum() / support.alive.sum()

        steps = self.inner_steps if self.training else self.eval_inner_steps
        weights = unroll(loss, before.weights, self.inner_optimizer, steps, first_order=True)
        errors, count = before.errors + self.errors(before.task, support), before.steps + support.alive.sum()
        return Actor(weights, task, errors, count)

    def query_loss(self, adapted: Actor, query: Trajectories) -> TaskOutput:
        """How wrong the critic was of each round, knowing the round before."""
        errors, steps = adapted.errors + self.errors(adapted.task, query), adapted.steps + query.alive.sum()
        return TaskOutput(errors / steps, query.rewards.sum(0))
