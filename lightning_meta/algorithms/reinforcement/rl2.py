"""RL^2: a recurrent network whose state is what it has learned of the task at hand.

Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel: "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning"
(2016), arXiv:1611.02779.

Its inputs are what is seen, the action and the reward of the step before, and whether a new episode begins. The state
outlives episodes, but not trials.

Deviations: trained by the advantage actor-critic on whole trials, with an entropy bonus; the paper uses TRPO with
generalised advantages. No weight normalisation.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.core import TaskOutput
from lightning_meta.core.policy_gradient import actor_critic_loss
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Actions


class Stream(NamedTuple):
    """The state `(B, D)` that a trial has come to, and its L steps so far, `(L, B)`."""

    state: Tensor
    log_probs: Tensor
    entropies: Tensor
    values: Tensor
    rewards: Tensor
    alive: Tensor


class RL2(RolloutModule):
    """Act by a GRU that is told rewards; train it on what trials earn in all.

    The states of the B trajectories of a trial are separate: each is a learner of its own.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        hidden: units of the GRU.
        discount: of rewards.
        gae_lambda: of advantages; 1: returns to go without values.
        value_weight: of the squared error of the values.
        entropy_weight: of the entropy of the policy, which training is to keep.
        **kwargs: of `RolloutModule`.
    """

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        hidden: int = 32,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        value_weight: float = 0.5,
        entropy_weight: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        if not (0 <= discount <= 1 and 0 <= gae_lambda <= 1):
            raise ConfigError(f"discount={discount} and gae_lambda={gae_lambda} must lie between 0 and 1.")
        self.discount, self.gae_lambda = discount, gae_lambda
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.inputs = nn.Linear(seen_size + actions.size + 2, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        self.outputs = nn.Linear(hidden, actions.scores + 1)

    def read(self, state: Tensor, told: Told) -> Tensor:
        """The next state: one step of a GRU. In plain operations, which can be mapped over tasks."""
        told_BI = torch.cat([told.seen, told.action, told.reward[..., None], told.fresh[..., None]], dim=-1)
        reset, update, new = self.inputs(told_BI).chunk(3, dim=-1)
        reset_by_state, update_by_state, new_by_state = self.recurrent(state).chunk(3, dim=-1)
        kept = torch.sigmoid(update + update_by_state)
        return kept * state + (1 - kept) * torch.tanh(new + torch.sigmoid(reset + reset_by_state) * new_by_state)

    def start(self, dice: Dice) -> Stream:
        trajectories = dice.world.shape[1]
        nothing = dice.world.new_zeros(0, trajectories)
        return Stream(dice.world.new_zeros(trajectories, self.recurrent.in_features), *[nothing] * 5)

    def act(self, stream: Stream, memory: Tensor | None, told: Told, dice: Tensor) -> tuple[Tensor, Tensor]:
        state = self.read(stream.state if memory is None else memory, told)
        return self.actions.draw(self.outputs(state)[..., :-1], dice), state

    def adapt(self, support: Trajectories) -> Stream:
        """Read the round again, now with gradients."""
        stream: Stream = support.actor
        state, states = stream.state, []
        for told in zip(*support.told, strict=True):
            state = self.read(state, Told(*told))
            states.append(state)
        outputs_HBS = self.outputs(torch.stack(states))
        scores_HBS, values_HB = outputs_HBS[..., :-1], outputs_HBS[..., -1]
        log_probs_HB = self.actions.log_prob(scores_HBS, support.actions)
        read = (log_probs_HB, self.actions.entropy(scores_HBS), values_HB, support.rewards, support.alive)
        return Stream(state, *(torch.cat(parts) for parts in zip(stream[1:], read, strict=True)))

    def query_loss(self, stream: Stream, query: Trajectories) -> TaskOutput:
        """Of the whole trial: what an early episode teaches pays in later ones."""
        whole = self.adapt(query)
        loss = actor_critic_loss(*whole[1:], self.discount, self.gae_lambda, self.value_weight, self.entropy_weight)
        return TaskOutput(loss, query.rewards.sum(0))
