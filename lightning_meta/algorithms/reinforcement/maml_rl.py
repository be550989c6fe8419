"""MAML for reinforcement learning: a policy from which a few steps of policy gradient solve a new task.

Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), arXiv:1703.03400,
algorithm 3.

Deviations: the outer step is that of an ordinary optimizer; the paper's is TRPO (Schulman et al. 2015). The inner loss
is LVC (Rothfuss et al. 2019), whose second derivatives are nearly right; those of the authors' loss (`plain`) are not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.backbones.mlp import MLP, Activation
from lightning_meta.core import SGD, InnerOptimizer, Params, TaskOutput, take_step, trainable
from lightning_meta.core.policy_gradient import (
    Surrogate,
    advantages,
    check_discounts,
    linear_baseline,
    returns_to_go,
    standardised,
    surrogate,
)
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.modules.learned_rates import inner_optimizer_for
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Actions, Continuous


class Policy(nn.Module):
    """Scores of actions by a network; the standard deviations of continuous ones do not depend on what is seen."""

    def __init__(self, seen_size: int, actions: Actions, hidden: Sequence[int], activation: Activation) -> None:
        super().__init__()
        network = MLP(seen_size, list(hidden), activation)
        free = isinstance(actions, Continuous)
        self.network = nn.Sequential(network, nn.Linear(network.out_features, actions.size))
        self.log_std = nn.Parameter(torch.zeros(actions.size)) if free else None

    def forward(self, seen: Tensor) -> Tensor:
        outputs = self.network(seen.flatten(0, -2)).unflatten(0, seen.shape[:-1])
        return outputs if self.log_std is None else torch.cat([outputs, self.log_std.expand_as(outputs)], dim=-1)


class MAMLRL(RolloutModule):
    """Adapt all weights of a policy by policy gradient on each round; meta-learn where that starts.

    Advantages are returns to go without a linear baseline that is fitted to the round, standardised per task.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        hidden: units of each hidden layer of the policy.
        activation: of its hidden layers.
        inner_lr: step size of the inner loop (alpha).
        first_order: drop second derivatives.
        surrogate: `lvc`, `dice` or `plain`; see `core/policy_gradient.py`.
        discount: of rewards.
        gae_lambda: below 1, advantages trust the baseline (generalised advantage estimation).
        inner_optimizer: makes the inner optimizer from the step size, such as `LearnedRates`. None: `SGD`.
        **kwargs: of `RolloutModule`.
    """

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        hidden: Sequence[int] = (100, 100),
        activation: Activation = "relu",
        inner_lr: float = 0.1,
        first_order: bool = False,
        surrogate: Surrogate = "lvc",
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        check_discounts(discount, gae_lambda)
        self.first_order, self.surrogate = first_order, surrogate
        self.discount, self.gae_lambda = discount, gae_lambda
        self.policy = Policy(seen_size, actions, hidden, activation)
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)

    def theta(self) -> Params:
        """Where the inner loop starts."""
        return trainable(self.policy)

    def start(self, dice: Dice) -> Any:
        return self.theta()

    def act(self, phi: Any, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        return self.actions.draw(functional_call(self.policy, phi, (told.seen,)), dice), memory

    def loss(self, phi: Params, played: Trajectories) -> Tensor:
        """Minus the surrogate of the expected return, per step."""
        summed_B = surrogate(self.surrogate, self.log_probs(phi, played), self.advantages(played))
        return -summed_B.sum() / played.alive.sum()

    def log_probs(self, phi: Params, played: Trajectories) -> Tensor:
        """Of what was done `(H, B)`; 0 after the end."""
        scores = functional_call(self.policy, phi, (played.told.seen,))
        return self.actions.log_prob(scores, played.actions) * played.alive

    def advantages(self, played: Trajectories) -> Tensor:
        """How much better each step turned out than was expected, `(H, B)`; 0 after the end."""
        estimates_HB = advantages(played.rewards, self.values(played), self.discount, self.gae_lambda)
        return standardised(estimates_HB, played.alive)

    def values(self, played: Trajectories) -> Tensor:
        """What is expected of each step on `(H, B)`; nothing after the end."""
        returns_HB = returns_to_go(played.rewards, self.discount)
        return linear_baseline(played.told.seen, returns_HB, played.alive) * played.alive

    def adapt(self, support: Trajectories) -> Any:
        phi: Params = support.actor
        moved, *_ = take_step(
            lambda params: self.loss(params, support), phi, self.inner_optimizer, self.inner_optimizer.init(phi),
            self.first_order,
        )  # fmt: skip
        return moved

    def query_loss(self, phi: Any, query: Trajectories) -> TaskOutput:
        return TaskOutput(self.loss(phi, query), query.rewards.sum(0))
