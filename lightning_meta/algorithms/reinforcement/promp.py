"""ProMP: proximal meta-policy search, several outer updates from what was played once.

Rothfuss, Lee, Clavera, Asfour, Abbeel: "ProMP: Proximal Meta-Policy Search" (2019), arXiv:1810.06784, algorithm 1.

What is played is played by the policy of the first of these updates. The others weigh it by how much likelier the
policy of now would do the same, and what it adapts to after a round: the objective of PPO (Schulman et al. 2017), with
a penalty where the policy before adaptation has moved.

Trajectories are not kept. They are a function of who plays and of the dice, so the module keeps the policy of the first
update, `Rollouts.updates` brings the same trials again, and they are played again. A training that was stopped between
two updates goes on exactly.

Deviations: the weight of the penalty is fixed; the authors' code can adapt it.

Shapes: `H` steps, `B` trajectories.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from lightning_meta.algorithms.reinforcement.maml_rl import MAMLRL
from lightning_meta.core import Params, TaskOutput, take_step
from lightning_meta.core.inner_loop import detach
from lightning_meta.datamodules.trials.rollouts import Dice, Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.modules.buffers import Buffers
from lightning_meta.modules.rollout import Told, Trajectories
from lightning_meta.worlds import Actions


class Pair(NamedTuple):
    """Who plays, who learns from it, and how far the latter was from the former before each adaptation, summed up."""

    old: Params
    new: Params
    moved: Tensor


class ProMP(MAMLRL):
    """MAML that takes `Rollouts.updates` outer updates on what was played once, none of them too far.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        clip: ratios of probabilities after adaptation count up to `1 + clip` and down to `1 - clip`.
        divergence_weight: of the divergence of the policy before adaptation from the one that played.
        **kwargs: of `MAMLRL`, whose `surrogate` is of no use here.
    """

    def __init__(
        self, seen_size: int, actions: Actions, clip: float = 0.3, divergence_weight: float = 0.0005, **kwargs: Any
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        if not 0 < clip < 1:
            raise ConfigError(f"clip={clip} must lie between 0 and 1.")
        self.clip, self.divergence_weight = clip, divergence_weight
        self.old, self.updates = Buffers(detach(self.theta())), 1

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, Rollouts):
            self.updates = datamodule.updates

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.batch_number % self.updates == 0:
            for kept, now in zip(self.old.buffers(), self.theta().values(), strict=True):
                kept.copy_(now.detach())

    def start(self, dice: Dice) -> Pair:
        old = self.old.tree if self.training else detach(self.theta())
        return Pair(old, self.theta(), dice.world.new_zeros(()))

    def act(self, pair: Pair, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        return super().act(pair.old, memory, told, dice)

    def ratios(self, phi: Params, old: Params, played: Trajectories) -> Tensor:
        """How much likelier `phi` would do what `old` did, at each step `(H, B)`; 1 after the end."""
        return (self.log_probs(phi, played) - self.log_probs(old, played).detach()).exp()

    def adapt(self, support: Trajectories) -> Pair:
        pair: Pair = support.actor
        advantages_HB, steps = self.advantages(support), support.alive.sum()

        def moved(params: Params, first_order: bool) -> Params:
            def loss(phi: Params) -> Tensor:
                return -(self.ratios(phi, pair.old, support) * advantages_HB).sum() / steps

            state = self.inner_optimizer.init(params)
            return take_step(loss, params, self.inner_optimizer, state, first_order)[0]

        scores, others = (functional_call(self.policy, params, (support.told.seen,)) for params in (pair.old, pair.new))
        far = (self.actions.divergence(scores.detach(), others) * support.alive).sum() / steps
        return Pair(detach(moved(pair.old, True)), moved(pair.new, self.first_order), pair.moved + far)

    def query_loss(self, pair: Pair, query: Trajectories) -> TaskOutput:
        ratios_HB, advantages_HB = self.ratios(pair.new, pair.old, query), self.advantages(query)
        within_HB = ratios_HB.clamp(1 - self.clip, 1 + self.clip)
        gains_HB = torch.minimum(ratios_HB * advantages_HB, within_HB * advantages_HB)
        loss = -gains_HB.sum() / query.alive.sum() + self.divergence_weight * pair.moved
        return TaskOutput(loss, query.rewards.sum(0), {"moved": pair.moved.detach()})
