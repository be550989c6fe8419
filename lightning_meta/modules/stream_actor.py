"""Base of actors that learn by reading on: a trial is one stream, and what was read is all that adapts.

Their inputs are those of Duan et al. (2016), arXiv:1611.02779: what is seen, the action and the reward of the step
before, and whether a new trajectory begins. What they remember outlives trajectories, but not trials. They are trained
by the advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783) on whole trials.

Shapes: `H` steps of a round, `L` of a trial so far, `B` trajectories, `D` features.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.core import TaskOutput
from lightning_meta.core.cuda_graph import Schedule
from lightning_meta.core.policy_gradient import actor_critic_loss, check_discounts
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import require_at_least
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Actions


class Stream(NamedTuple):
    """What is remembered of a trial, and its L steps so far, `(L, B)`."""

    memory: Any
    log_probs: Tensor
    entropies: Tensor
    values: Tensor
    rewards: Tensor
    alive: Tensor


class StreamActorModule(RolloutModule):
    """A subclass writes `blank` and `read`, says what the `features` of a memory are, and makes `outputs` of them.

    The B trajectories of a trial are read apart: each is a learner of its own.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        discount: of rewards.
        discount_until: outer step at which the discount has grown from 0 to its value, linearly: first it is learned
            what pays at once. 0: it has its value from the start.
        gae_lambda: of advantages; 1: returns to go without values.
        value_weight: of the squared error of the values.
        entropy_weight: of the entropy of the policy, which training is to keep.
        entropy_until: outer step at which that weight has faded to 0, linearly. 0: it stays.
        **kwargs: of `RolloutModule`.
    """

    outputs: nn.Module

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        value_weight: float = 0.5,
        entropy_weight: float = 0.01,
        entropy_until: int = 0,
        discount_until: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        check_discounts(discount, gae_lambda)
        require_at_least(0, entropy_until=entropy_until, discount_until=discount_until)
        self.discount, self.gae_lambda = discount, gae_lambda
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.entropy_until, self.discount_until = entropy_until, discount_until

    def head(self, features: int) -> nn.Linear:
        """From features to the scores of actions and the value, which come last: what `outputs` is to be."""
        return nn.Linear(features, self.actions.scores + 1)

    def schedule(self) -> Schedule:
        left = max(1 - self.global_step / self.entropy_until, 0.0) if self.entropy_until else 1.0
        grown = min(self.global_step / self.discount_until, 1.0) if self.discount_until else 1.0
        return {"entropy_weight": self.entropy_weight * left, "discount": self.discount * grown}

    def blank(self, like: Tensor) -> Any:
        """The memory of B trajectories before their first step; `like` is any tensor with their device and type."""
        raise NotImplementedError

    def read(self, memory: Any, told: Told) -> Any:
        """What is remembered after one more step."""
        raise NotImplementedError

    def features(self, memory: Any) -> Tensor:
        """`(B, D)`."""
        return memory

    def read_round(self, memory: Any, told: Told) -> tuple[Any, Tensor]:
        """What is remembered after H more steps, and the features after each `(H, B, D)`."""
        features = []
        for step in zip(*told, strict=True):
            memory = self.read(memory, Told(*step))
            features.append(self.features(memory))
        return memory, torch.stack(features)

    def start(self, dice: Dice) -> Stream:
        nothing = dice.world.new_zeros(0, dice.world.shape[1])
        return Stream(self.blank(dice.world[0]), *[nothing] * 5)

    def act(self, stream: Stream, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        memory = self.read(stream.memory if memory is None else memory, told)
        return self.actions.draw(self.outputs(self.features(memory))[..., :-1], dice), memory

    def adapt(self, support: Trajectories) -> Stream:
        """Read the round again, now with gradients."""
        stream: Stream = support.actor
        memory, features_HBD = self.read_round(stream.memory, support.told)
        outputs_HBS = self.outputs(features_HBD)
        scores_HBS, values_HB = outputs_HBS[..., :-1], outputs_HBS[..., -1]
        log_probs_HB = self.actions.log_prob(scores_HBS, support.actions)
        read = (log_probs_HB, self.actions.entropy(scores_HBS), values_HB, support.rewards, support.alive)
        return Stream(memory, *(torch.cat(parts) for parts in zip(stream[1:], read, strict=True)))

    def query_loss(self, stream: Stream, query: Trajectories) -> TaskOutput:
        """Of the whole trial: what an early trajectory teaches pays in later ones."""
        whole = self.adapt(query)
        discount, entropy_weight = self.scheduled("discount"), self.scheduled("entropy_weight")
        loss = actor_critic_loss(*whole[1:], discount, self.gae_lambda, self.value_weight, entropy_weight)
        return TaskOutput(loss, query.rewards.sum(0))
