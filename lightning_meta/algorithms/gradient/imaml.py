"""iMAML: differentiate through the solution of the inner problem, not through the steps that led to it.

Rajeswaran, Finn, Kakade, Levine: "Meta-Learning with Implicit Gradients" (2019), arXiv:1909.04630.

Deviations: those of MAML. The inner loop descends on the paper's objective, proximal term included, in training and
evaluation; the authors' code takes its steps on the support loss alone and one on the proximal term at the end. Its
linear system is damped twice, by fixed terms; here `cg_damping` is one, and 0 is the paper's Lemma 1.
"""

from typing import Any

from torch import Tensor

from lightning_meta.algorithms.gradient.maml import MAML, refuse_to_learn
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
        cg_steps: int = 5,
        cg_damping: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, first_order=True, **kwargs)
        refuse_to_learn(self)
        if proximal_strength <= 0 or cg_damping < 0 or cg_steps < 1:
            raise ConfigError(
                f"proximal_strength={proximal_strength} must be positive, cg_steps={cg_steps} at least 1 and "
                f"cg_damping={cg_damping} not negative."
            )
        self.proximal_strength, self.cg_steps, self.cg_damping = proximal_strength, cg_steps, cg_damping

    def adapt(self, support: Batch) -> Params:
        """Fast weights phi, whose derivative with respect to theta is that of the inner problem's solution."""
        theta = self.theta()
        anchor = detach(theta)

        def inner_loss(params: Params) -> Tensor:
            distance = sum((params[name] - value).square().sum() for name, value in anchor.items())
            return self.loss(params, support) + self.proximal_strength / 2 * distance

        phi = unroll(inner_loss, anchor, self.inner_optimizer, self.steps)
        phi = implicit_minimiser(self.loss, phi, theta, support, self.proximal_strength, self.cg_steps, self.cg_damping)
        return phi | support_statistics(self.learner, phi, support.x)
