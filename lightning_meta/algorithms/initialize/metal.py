"""MeTAL: the loss of the inner loop is learned, and adapts to the task and the step.

Baik, Choi, Kim, Cho, Min, Lee: "Meta-Learning with Task-Adaptive Loss Function for Few-Shot Learning" (2021),
arXiv:2110.03909.

To the cross-entropy of the support set comes what a network of each step says of its examples. It reads the state of
the learner (that cross-entropy and the mean of each weight tensor), and an example's logits and label. Its weights are
scaled and shifted by what a second network says of the state.

Deviations: those of MAML. The paper's loss has a second part, of the unlabelled queries, which is left out: adaptation
sees the support set alone. The loss network's last layer starts at zero, so that training starts from MAML.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Batch, Params, unroll
from lightning_meta.errors import ConfigError


class MeTAL(MAML):
    """MAML whose inner loop descends on a learned loss. For classification.

    Args:
        backbone, n_way, inner_lr: of `MAML`.
        inner_steps: adaptation steps in training; each has its own loss, later ones use the last.
        **kwargs: of `MAML`; there is no first order.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_steps, **kwargs)
        if self.first_order:
            raise ConfigError(
                "first_order=True makes constants of the inner gradients, through which alone MeTAL's losses learn; "
                "set it to False, or take MAML."
            )
        self.losses = nn.ModuleList(StepLoss(len(self.theta()), self.n_way) for _ in range(max(inner_steps, 1)))

    def learned_loss(self, params: Params, support: Batch, step: int) -> Tensor:
        logits_SN = functional_call(self.learner, params, (support.x,))
        loss = self.loss_fn(logits_SN, support.y)
        state = torch.stack([loss, *(value.mean() for value in params.values())])
        return loss + self.losses[min(step, len(self.losses) - 1)](state, logits_SN, support.y)

    def adapt(self, support: Batch) -> Params:
        losses = [partial(self.learned_loss, support=support, step=step) for step in range(self.steps)]
        phi = unroll(losses, self.theta(), self.inner_optimizer, self.steps)
        return phi | support_statistics(self.learner, phi, support.x)


class StepLoss(nn.Module):
    """What one inner step adds to the cross-entropy: the mean over examples of what a network says of each."""

    def __init__(self, n_tensors: int, n_way: int) -> None:
        super().__init__()
        state, width = 1 + n_tensors, 1 + n_tensors + 2 * n_way
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.loss = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)
        tensors = len(list(self.loss.parameters()))
        self.adapter = nn.Sequential(nn.Linear(state, state), nn.ReLU(), nn.Linear(state, 2 * tensors))
        self.strengths = nn.Parameter(torch.zeros(2, tensors))  # of scales and shifts

    def forward(self, state: Tensor, logits_SN: Tensor, labels_S: Tensor) -> Tensor:
        scales, shifts = self.strengths * self.adapter(standardised(state)).view(2, -1)
        weights = {
            name: (1 + scale) * value + shift
            for (name, value), scale, shift in zip(self.loss.named_parameters(), scales, shifts, strict=True)
        }
        # Not F.one_hot, which looks at values where vmap is outside of an inner gradient.
        labels_SN = (labels_S[:, None] == torch.arange(logits_SN.shape[1], device=labels_S.device)).to(logits_SN.dtype)
        examples = torch.cat([state.expand(len(labels_S), -1), logits_SN, labels_SN], dim=1)
        return functional_call(self.loss, weights, (standardised(examples),)).mean()


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.std() + 1e-12)
