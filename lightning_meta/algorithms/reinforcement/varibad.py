"""VariBAD: a belief about the task at hand, learned by what it says about rewards, and a policy that reads it.

Zintgraf, Shiarlis, Igl, Schulze, Gal, Hofmann, Whiteson: "VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via
Meta-Learning" (2020), arXiv:1910.08348.

A recurrent network turns the trial so far into a normal distribution of a latent vector; a decoder says of each step of
the whole trial, past and to come, what it pays under a vector that is drawn from it. The policy sees the distribution,
and does not train it.

Deviations: rewards alone are decoded, as in the authors' grid world, and of the trials at hand, not of a buffer. The
decoder is a product of a code of the vector and a code of the step, so that every belief judges every step at the cost
of one matrix product. Belief and policy take one step of one optimizer for each batch of trials; the authors' take
three and one, of two optimizers.

Shapes: `L` steps of a trial so far, `B` trajectories, `Z` latent numbers, `D` numbers of a code, `N` numbers that the
policy reads.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones.recurrent import GRUCell
from lightning_meta.compat import tree_map
from lightning_meta.core import TaskOutput
from lightning_meta.core.dice import normal
from lightning_meta.core.gaussian import Gaussian, kl_divergence, log_density
from lightning_meta.core.policy_gradient import actor_critic_loss, check_discounts
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import require_at_least
from lightning_meta.modules.rollout import RolloutModule, Told, Trajectories
from lightning_meta.worlds import Actions

DIE_BITS = 24  # of a die in single precision


class Life(NamedTuple):
    """The memory of a trial, its L steps so far `(L, B, ...)`, and the key of the vectors to be drawn."""

    memory: Tensor
    told: Told
    actions: Tensor
    rewards: Tensor
    alive: Tensor
    key: Tensor


class VariBAD(RolloutModule):
    """Act by what is seen and by a belief; the B trajectories of a trial are learners of their own.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        latent: Z.
        hidden: units of the GRU.
        width: units of the hidden layers of the decoder.
        policy_width: and of the policy and of the critic.
        step_layers: hidden layers of the code of a step. 0 where a step is one of a few, as in the authors' grid world,
            whose decoder has an output for each cell.
        pays_above: the decoder says how likely a reward is above this number. None: what the rewards are, as normal
            numbers of a learned deviation.
        kl_weight: of the divergence of each belief from the one before it.
        discount: of rewards.
        gae_lambda: of advantages.
        value_weight: of the squared error of the values.
        entropy_weight: of the entropy of the policy, which training is to keep.
        **kwargs: of `RolloutModule`.
    """

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        latent: int = 5,
        hidden: int = 64,
        width: int = 32,
        policy_width: int = 128,
        step_layers: int = 2,
        pays_above: float | None = None,
        kl_weight: float = 1.0,
        discount: float = 0.95,
        gae_lambda: float = 0.95,
        value_weight: float = 0.5,
        entropy_weight: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        require_at_least(1, latent=latent)
        require_at_least(0, step_layers=step_layers)
        check_discounts(discount, gae_lambda)
        self.latent, self.pays_above, self.kl_weight = latent, pays_above, kl_weight
        self.discount, self.gae_lambda = discount, gae_lambda
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.cell, self.to_belief = GRUCell(self.told_size, hidden), nn.Linear(hidden, 2 * latent)
        self.policy = perceptron(seen_size + 2 * latent, policy_width, actions.scores)
        self.critic = perceptron(seen_size + 2 * latent, policy_width, 1)
        self.code_of_latent = perceptron(latent, width, width)
        self.code_of_step = perceptron(seen_size + actions.size, width, width, step_layers)
        self.log_std = nn.Parameter(torch.zeros(()), requires_grad=pays_above is None)  # of rewards

    # ---- the belief ----------------------------------------------------------------------------------------------

    def belief(self, memory: Tensor) -> Gaussian:
        """What is believed of the task `(..., Z)` with a memory."""
        mean, log_std = self.to_belief(memory).chunk(2, dim=-1)
        return Gaussian(mean, log_std.exp())

    def beliefs(self, told: Told) -> Gaussian:
        """After each step of a whole trial `(L, B, Z)`."""
        return self.belief(self.cell.unroll(told.numbers()))

    def decoded(self, latent: Tensor, seen: Tensor, action: Tensor) -> Tensor:
        """Of each vector `(..., L, Z)` what each step `(..., S, .)` pays: a logit, or a mean `(..., L, S)`.

        A step is the action, as numbers, and what was seen after it.
        """
        return self.code_of_latent(latent) @ self.code_of_step(torch.cat([seen, action], dim=-1)).mT

    def evidence(self, beliefs: Gaussian, told: Told, alive_LB: Tensor, key: Tensor) -> Tensor:
        """The lower bound of the log-probability of all rewards, by the belief after each step, on average."""
        noise_LBZ = normal(key, *beliefs.mean.shape, dtype=beliefs.mean.dtype)
        latent_BLZ, seen_BSO, action_BSA = (
            part.transpose(0, 1) for part in (beliefs.mean + beliefs.std * noise_LBZ, told.seen, told.action)
        )
        decoded_BLS = self.decoded(latent_BLZ, seen_BSO, action_BSA)
        reward_BLS = told.reward.T[:, None].expand_as(decoded_BLS)
        if self.pays_above is None:
            fits_BLS = log_density(reward_BLS, Gaussian(decoded_BLS, self.log_std.exp()))
        else:
            paid_BLS = (reward_BLS > self.pays_above).to(decoded_BLS.dtype)
            fits_BLS = -F.binary_cross_entropy_with_logits(decoded_BLS, paid_BLS, reduction="none")
        # What is told in the first step of a trajectory is no step of it, and nothing is after its end.
        known_BS = (alive_LB * (1 - told.fresh)).T
        fits_LB = (fits_BLS * known_BS[:, None]).sum(-1).T
        before = Gaussian(*(
            torch.cat([first(part[:1]), part[:-1]])
            for first, part in zip((torch.zeros_like, torch.ones_like), beliefs, strict=True)
        ))  # fmt: skip
        bounds_LB = fits_LB - self.kl_weight * kl_divergence(beliefs, before).sum(-1)
        return (bounds_LB * alive_LB).sum() / alive_LB.sum()

    # ---- who acts ------------------------------------------------------------------------------------------------

    def known(self, seen: Tensor, belief: Gaussian) -> Tensor:
        """What policy and critic read: what is seen and the belief, which they do not train."""
        return torch.cat([seen, belief.mean.detach(), belief.std.detach()], dim=-1)

    def start(self, dice: Dice) -> Life:
        told = self.nothing_told(dice)
        memory = self.cell.zero_state(dice.world[0])
        no_action = self.actions.draw(dice.actor.new_zeros(0, dice.actor.shape[1], self.actions.scores), dice.actor[:0])
        key = (dice.actor * 2**DIE_BITS).long().sum()  # another one for each trial, since dice are
        return Life(memory, told, no_action, told.reward, told.reward, key)

    def act(self, life: Life, memory: Tensor | None, told: Told, dice: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.cell(told.numbers(), life.memory if memory is None else memory)
        return self.actions.draw(self.policy(self.known(told.seen, self.belief(memory))), dice), memory

    def adapt(self, support: Trajectories) -> Life:
        life: Life = support.actor
        memory, key = life.memory, life.key
        with torch.no_grad():
            for numbers in support.told.numbers():
                memory = self.cell(numbers, memory)
        new = (support.told, support.actions, support.rewards, support.alive)
        told, actions, rewards, alive = tree_map(lambda *parts: torch.cat(parts), life[1:5], new)
        return Life(memory, told, actions, rewards, alive, key)

    def query_loss(self, life: Life, query: Trajectories) -> TaskOutput:
        """Of the whole trial: the actor-critic's, and minus the evidence."""
        _, told, actions, rewards_LB, alive_LB, key = self.adapt(query._replace(actor=life))
        beliefs = self.beliefs(told)
        known_LBN = self.known(told.seen, beliefs)
        scores_LBS, values_LB = self.policy(known_LBN), self.critic(known_LBN).squeeze(-1)
        of_policy = actor_critic_loss(
            self.actions.log_prob(scores_LBS, actions), self.actions.entropy(scores_LBS), values_LB,
            rewards_LB, alive_LB, self.discount, self.gae_lambda, self.value_weight, self.entropy_weight,
        )  # fmt: skip
        evidence = self.evidence(beliefs, told, alive_LB, key)
        return TaskOutput(of_policy - evidence, query.rewards.sum(0), {"evidence": evidence.detach()})


def perceptron(inputs: int, width: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """Hidden layers with tanh, then a linear one."""
    sizes = [inputs, *[width] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))
