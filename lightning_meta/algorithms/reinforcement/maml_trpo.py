"""MAML for reinforcement learning with the outer step of its paper, trust region policy optimization (TRPO).

Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), arXiv:1703.03400,
section 5.3. TRPO: Schulman et al. (2015), see `core/trust_region.py`.

What was played is judged with other weights before adaptation: which policies they lead to, how much likelier those
would do the same, and how far they are from the policies that were there. The module takes the step itself; the
gradient of its loss is that step, so the optimizer is `SGD` of rate 1.

Deviations: products with the Hessian are exact; the authors' are finite differences. The inner loss is LVC, as in
`MAMLRL`.

Shapes: `H` steps, `B` trajectories.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import SGD

from lightning_meta.algorithms.reinforcement.maml_rl import MAMLRL
from lightning_meta.core import Params, TaskOutput, trainable
from lightning_meta.core.trust_region import trust_region_step
from lightning_meta.datamodules.trials.rollouts import RolloutTrial
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.base import MetaOptimizer
from lightning_meta.modules.rollout import Trajectories
from lightning_meta.worlds import Actions


class MAMLTRPO(MAMLRL):
    """MAML whose outer update moves the adapted policies as far as they may.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        max_divergence: of adapted policies from those before the update, in nats per step, on average.
        cg_steps: of conjugate gradients; each costs three passes through all tasks.
        damping: of the Hessian's diagonal.
        optimizer: `SGD`; a rate below 1 takes that part of the step. None: of rate 1.
        **kwargs: of `MAMLRL`.
    """

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        max_divergence: float = 0.01,
        cg_steps: int = 10,
        damping: float = 1e-5,
        optimizer: MetaOptimizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, optimizer=optimizer or partial(SGD, lr=1.0), **kwargs)
        require_at_least(1, cg_steps=cg_steps)
        if not max_divergence > 0:
            raise ConfigError(f"max_divergence={max_divergence} must be above 0, or no step may be taken.")
        if damping < 0:
            raise ConfigError(f"damping={damping} must be at least 0.")
        self.max_divergence, self.cg_steps, self.damping = max_divergence, cg_steps, damping

    def setup(self, stage: str) -> None:
        super().setup(stage)
        clipped, accumulated = self.trainer.gradient_clip_val, self.trainer.accumulate_grad_batches
        if stage == "fit" and (clipped or accumulated > 1):
            raise ConfigError(
                f"{type(self).__name__} takes its outer step itself, but trainer.gradient_clip_val={clipped} and "
                f"accumulate_grad_batches={accumulated} would change it; set them to null and 1."
            )

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        if not isinstance(optimizer, SGD):
            raise ConfigError(
                f"{type(self).__name__} takes its outer step itself, which {type(optimizer).__name__} would change; "
                "set model.optimizer to torch.optim.SGD with lr=1."
            )
        return made

    def measure(self, tasks: RolloutTrial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not (self.training and torch.is_grad_enabled()):
            return super().measure(tasks)
        with torch.no_grad():
            out, rounds, adapted = self._map(self.play_and_judge, tasks)
        values, others = self.measured(out)

        def at(theta: Params) -> tuple[Tensor, Tensor]:
            judged = self._map(lambda *task: functional_call(self, theta, task), (rounds, adapted))
            return judged.loss.mean(), judged.logs["divergence"].mean()

        theta = trainable(self)
        step = trust_region_step(at, theta, self.max_divergence, self.cg_steps, self.damping)
        moved = [((here - step.theta[name]).detach() * (here - here.detach())).sum() for name, here in theta.items()]
        logs = {"divergence": step.divergence, "length": step.divergence.new_tensor(step.length)}
        values["loss"] = values["loss"] + torch.stack(moved).sum()
        return values | {name: value.expand_as(values["loss"]) for name, value in logs.items()}, others

    def play_and_judge(self, *trial: Any) -> tuple[TaskOutput, list[Trajectories], Tensor]:
        """A trial; what was recorded of every round; and the scores of who acted in the last `(H, B, S)`."""
        out, rounds = self.play_rounds(*trial)
        scores = functional_call(self.policy, rounds[-1].actor, (rounds[-1].told.seen,))
        return out, [played._replace(actor=()) for played in rounds], scores

    def forward(self, rounds: list[Trajectories], before: Tensor) -> TaskOutput:
        """What the weights of now would have made of recorded rounds.

        Args:
            rounds: of one trial, without who acted.
            before: scores of who acted in the last of them, `(H, B, S)`.
        """
        phi = self.theta()
        for played in rounds[:-1]:
            phi = self.adapt(played._replace(actor=phi))
        query = rounds[-1]
        scores = functional_call(self.policy, phi, (query.told.seen,))
        log_ratios_HB = self.actions.log_prob(scores, query.actions) - self.actions.log_prob(before, query.actions)
        gains_HB = log_ratios_HB.exp() * self.advantages(query)
        steps = query.alive.sum()
        divergence = (self.actions.divergence(before, scores) * query.alive).sum() / steps
        return TaskOutput(-gains_HB.sum() / steps, query.rewards.sum(0), {"divergence": divergence})
