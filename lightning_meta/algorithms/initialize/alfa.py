"""ALFA: a small network says in each inner step how far to go and how much of the weights to keep.

Baik, Choi, Choi, Kim, Lee: "Meta-Learning with Adaptive Hyperparameters" (2020), arXiv:2011.00209.

The state of the learner, from which the network reads, is the mean of each weight tensor and of its gradient. What it
says are factors of learned step sizes and weight decays, which each tensor has for each step. As in the authors' code,
the state's gradients are constants of the meta-gradient.

Deviations: those of MAML. The network starts from factors of 1 for step sizes and 0 for weight decays whatever it
reads, so that training starts from MAML; the authors draw its last layer as any other.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.core import Params
from lightning_meta.modules.learned_rates import Learned


class ALFA(MAML):
    """MAML with step sizes and weight decays that are generated from the state of the inner loop.

    Args:
        backbone, n_way: of `MAML`.
        inner_lr: of all step sizes before training.
        inner_steps: adaptation steps in training; each has its own step sizes, later ones use the last.
        weight_decay: of all weights before training, if the factor were 1: a step then shrinks them by
            `inner_lr * weight_decay` of their value.
        **kwargs: of `MAML`, but for `inner_optimizer`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        weight_decay: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_steps, inner_optimizer=None, **kwargs)
        self.inner_optimizer = GeneratedRates(self.theta(), inner_lr, weight_decay, inner_steps)


class GeneratedRates(nn.Module):
    """An inner optimizer: `phi <- (1 - decay) * phi - rate * grad`, both generated for each tensor and step."""

    def __init__(self, params: Params, lr: float, weight_decay: float, steps: int) -> None:
        super().__init__()
        steps = max(steps, 1)
        self.rates = Learned(params, lr, "tensor", steps)
        self.decays = Learned(params, lr * weight_decay, "tensor", steps)
        size = 2 * len(params)
        last = nn.Linear(size, size)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.arange(size).lt(len(params)).to(last.bias.dtype)
        self.generator = nn.Sequential(nn.Linear(size, size), nn.ReLU(), last)

    def init(self, params: Params) -> int:
        """The number of steps taken."""
        return 0

    def update(self, grads: Params, state: int, params: Params, loss: Tensor) -> tuple[Params, int]:
        means = [*(value.mean() for value in params.values()), *(grads[name].mean().detach() for name in params)]
        rate_factors, decay_factors = self.generator(torch.stack(means)).chunk(2)
        moved = {}
        for (name, value), rate, decay in zip(params.items(), rate_factors, decay_factors, strict=True):
            kept = 1 - decay * self.decays.at(state, name)
            moved[name] = kept * value - rate * self.rates.at(state, name) * grads[name]
        return moved, state + 1
