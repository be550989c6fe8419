"""iMAML: differentiate through the solution of the inner problem, not through the steps that led to it.

Rajeswaran, Finn, Kakade, Levine: "Meta-Learning with Implicit Gradients" (2019), arXiv:1909.04630.

The defaults are the paper's algorithm: every inner step descends on its objective, and the linear system is that of its
Lemma 1. The authors' code is another: `proximal_step="last"`, `eval_proximal_strength=0`, and a system with two fixed
terms, `2 v + Hv / (lambda + 10)`. Conjugate gradients have half the solution of `v + Hv / (2 lambda + 20)`, which is
`cg_damping = lambda + 20` here; Adam, which is their meta-optimizer, does not see the half.

Deviations: those of MAML, and their weights before training: xavier-uniform 1.73 times as wide, biases in [0, 0.05].
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_meta.algorithms.initialize.maml import MAML, refuse_to_learn
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Batch, Params, detach, implicit_minimiser, unroll
from lightning_meta.errors import ConfigError


class IMAML(MAML):
    """Adapt by gradient descent on the support loss plus a proximal term, `lambda / 2 |phi - theta|^2`.

    The term makes phi a function of theta alone, so the meta-gradient needs phi but no graph of the inner steps: memory
    does not grow with their number.

    Args:
        backbone, n_way: of `MAML`.
        inner_lr: step size of the inner loop. Descent needs `inner_lr * proximal_strength < 2`.
        proximal_strength: lambda. Large values keep phi near theta.
        eval_proximal_strength: lambda in validation and test. None: as in training.
        proximal_step: `each` inner step descends on the support loss plus the proximal term, or all of them on the
            support loss alone and one more, the `last`, on the proximal term alone.
        cg_steps: iterations of conjugate gradients for the meta-gradient, each about as dear as an inner step.
        cg_damping: added to lambda in the meta-gradient's linear system, against negative curvature where the inner
            loop has stopped short of a minimum. Towards infinity the meta-gradient becomes FOMAML's.
        **kwargs: of `MAML`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.1,
        proximal_strength: float = 2.0,
        eval_proximal_strength: float | None = None,
        proximal_step: Literal["each", "last"] = "each",
        cg_steps: int = 5,
        cg_damping: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, first_order=True, **kwargs)
        refuse_to_learn(self)
        eval_strength = proximal_strength if eval_proximal_strength is None else eval_proximal_strength
        if proximal_strength <= 0 or min(eval_strength, cg_damping) < 0 or cg_steps < 1:
            raise ConfigError(
                f"proximal_strength={proximal_strength} must be positive, cg_steps={cg_steps} at least 1, and "
                f"eval_proximal_strength={eval_proximal_strength} and cg_damping={cg_damping} not negative."
            )
        self.proximal_strength, self.eval_proximal_strength = proximal_strength, eval_strength
        self.proximal_step, self.cg_steps, self.cg_damping = proximal_step, cg_steps, cg_damping

    def adapt(self, support: Batch) -> Params:
        """Fast weights phi, whose derivative with respect to theta is that of the inner problem's solution."""
        theta = self.theta()
        anchor = detach(theta)

        strength = self.proximal_strength if self.training else self.eval_proximal_strength

        def support_loss(params: Params) -> Tensor:
            return self.loss(params, support)

        def proximal(params: Params) -> Tensor:
            distances = [(params[name] - value).square().sum() for name, value in anchor.items()]
            return strength / 2 * torch.stack(distances).sum()

        def objective(params: Params) -> Tensor:
            return support_loss(params) + proximal(params)

        losses = [objective] * self.steps
        if self.proximal_step == "last":
            losses = [support_loss] * self.steps + ([proximal] if strength else [])
        phi = unroll(losses, anchor, self.inner_optimizer, len(losses))
        phi = implicit_minimiser(self.loss, phi, theta, support, self.proximal_strength, self.cg_steps, self.cg_damping)
        return phi | support_statistics(self.learner, phi, support.x)
