"""E-MAML: MAML that is also taught to do what makes for an informative round of adaptation.

Stadie, Yang, Houthooft, Chen, Duan, Wu, Abbeel, Sutskever: "Some Considerations on Learning to Explore via
Meta-Reinforcement Learning" (2018), arXiv:1803.01118.

What a policy earns after adaptation depends on its weights in two ways: through the step, and through the trajectories
that it took the step on. MAML follows the first. The second is the gradient of the log-probability of these
trajectories, times what was earned after them.

Deviations: the outer step is that of an ordinary optimizer; the paper's is PPO or TRPO. What is earned is compared with
a learned number instead of the mean over the meta-batch, so that tasks do not depend on each other.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.reinforcement.maml_rl import MAMLRL
from lightning_meta.core import Params, TaskOutput
from lightning_meta.core.policy_gradient import Surrogate, magic
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.modules.rollout import Told, Trajectories
from lightning_meta.worlds import Actions


class Explorer(NamedTuple):
    """Who acts, and the log-probability of all that was done to come here."""

    phi: Params
    log_prob: Tensor


class EMAML(MAMLRL):
    """MAML with the gradient of what it chose to try.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        surrogate: `plain` is right here, its step as a function of the weights for given trajectories; the others would
            count the choice of trajectories a second time.
        exploration_weight: of the added term; 1 makes the gradient that of the expected return. It is a sum over
            all steps of the support, and as noisy; for long rounds take less, such as 1 over their steps.
        **kwargs: of `MAMLRL`.
    """

    def __init__(
        self, seen_size: int, actions: Actions, surrogate: Surrogate = "plain", exploration_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(seen_size, actions, surrogate=surrogate, **kwargs)
        self.exploration_weight = exploration_weight
        self.expected = nn.Parameter(torch.zeros(()))  # mean reward of a step of the query

    def start(self, dice: Dice) -> Explorer:
        return Explorer(self.theta(), dice.world.new_zeros(()))

    def act(self, explorer: Explorer, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        return super().act(explorer.phi, memory, told, dice)

    def adapt(self, support: Trajectories) -> Explorer:
        phi, log_prob = support.actor
        moved = super().adapt(support._replace(actor=phi))
        return Explorer(moved, log_prob + self.log_probs(phi, support).sum())

    def query_loss(self, explorer: Explorer, query: Trajectories) -> TaskOutput:
        out = super().query_loss(explorer.phi, query)
        earned = query.rewards.sum() / query.alive.sum()
        surprise = earned - self.expected
        exploration = magic(explorer.log_prob) * surprise.detach()
        return out._replace(loss=out.loss - self.exploration_weight * exploration + surprise.square() / 2)
