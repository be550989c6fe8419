"""ML3: a loss that is learned, so that a few steps on it do what many on the true one would.

Bechtle, Molchanov, Chebotar, Grefenstette, Righetti, Sukhatme, Meier: "Meta-Learning via Learned Loss" (2021),
arXiv:1906.05374.

A network of an example's prediction and target is the inner loss. It is learned as MAML learns its start: by the
derivative of the true loss after the inner steps. The start is not learned: each training task has new random weights.

Deviations: the loss is measured on the query set, not on the examples that were learned from; the loss network has
biases and ELUs in place of ReLUs, whose derivatives jump. New weights are normal, with the variance of torch's own
draws. Evaluation starts from the weights that the module was made with, always the same.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.errors import ConfigError


class ML3(MAML):
    """Learn the loss of the inner loop, for a learner that starts anywhere.

    Args:
        backbone, n_way, inner_lr, inner_steps: of `MAML`; `loss_fn` is the true loss.
        hidden: units of the two hidden layers of the loss network.
        **kwargs: of `MAML`; there is no first order.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        hidden: int = 50,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_steps, **kwargs)
        if self.first_order:
            raise ConfigError(
                "first_order=True makes constants of the inner gradients, through which alone ML3's loss learns; set "
                "it to False."
            )
        self.learner.requires_grad_(False)
        layers = [nn.Linear(2 * self.n_way, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU()]
        self.loss_network = nn.Sequential(*layers, nn.Linear(hidden, 1), nn.Softplus())

    def theta(self) -> Params:
        """Where the inner loop starts: in training, weights that are drawn for it."""
        theta = {name: p.detach() for name, p in self.learner.named_parameters()}
        if not self.training:
            return theta
        for prefix, layer in self.learner.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                deviation = (3 * layer.weight[0].numel()) ** -0.5  # that of uniform draws within fan_in^-1/2
                for name in (f"{prefix}.{part}" for part, _ in layer.named_parameters()):
                    theta[name] = deviation * torch.randn_like(theta[name])
        return theta

    def loss(self, params: Params, batch: Batch) -> Tensor:
        preds = functional_call(self.learner, params, (batch.x,))
        return self.loss_network(examples_of(preds, batch.y)).mean()


def examples_of(preds: Tensor, y: Tensor) -> Tensor:
    """What the loss network reads of each example: prediction and target, `(B, 2 N)`; classes as probabilities."""
    if y.is_floating_point():
        return torch.cat([preds, y], dim=1)
    # Not F.one_hot, which looks at values where vmap is outside of an inner gradient.
    labels_BN = (y[:, None] == torch.arange(preds.shape[1], device=y.device)).to(preds.dtype)
    return torch.cat([preds.softmax(1), labels_BN], dim=1)
