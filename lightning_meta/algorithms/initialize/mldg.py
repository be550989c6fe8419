"""MLDG: a step on some domains should help on another. It is MAML over domains.

Li, Yang, Song, Hospedales: "Learning to Generalize: Meta-Learning for Domain Generalization" (2018), arXiv:1710.03463.

With F the loss on the support set, of some domains, and G that on the query set, of another, it descends on
`F(theta) + beta G(theta - inner_lr F'(theta))`. In evaluation there is no adaptation. Ordinary training on all domains
(ERM) is `inner_lr: 0`, with the same examples; `beta: 0` trains on the support sets alone.

Deviations: one domain is held out in an episode, drawn anew for each.
"""

from typing import Any

from torch import Tensor

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.errors import ConfigError

LOSS = "loss before the step"  # of what is adapted; no parameter has such a name


class MLDG(MAML):
    """Learn weights that are good on the support domains and, after a step on them, on the query domain.

    Args:
        backbone, n_way, inner_lr, inner_steps: of `MAML`.
        beta: how much the loss after the step counts, beside that before it.
        **kwargs: of `MAML`, but `eval_inner_steps`, which is 0.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.1,
        inner_steps: int = 1,
        beta: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_steps, eval_inner_steps=0, **kwargs)
        if beta < 0:
            raise ConfigError(f"beta={beta} must not be negative; 0 is ordinary training on the support sets.")
        self.beta = beta

    def adapt(self, support: Batch) -> Params:
        phi = super().adapt(support)
        return phi | {LOSS: self.loss(self.theta(), support)} if self.training else phi

    def query_loss(self, phi: Params, query: Batch) -> TaskOutput:
        weights = {name: value for name, value in phi.items() if name != LOSS}
        after = super().query_loss(weights, query)
        before: Tensor | None = phi.get(LOSS)
        return after if before is None else after._replace(loss=before + self.beta * after.loss)
