"""Learning to reweight: an example counts as much as a step on it would help the held-out examples.

Ren, Zeng, Yang, Urtasun: "Learning to Reweight Examples for Robust Deep Learning" (2018), arXiv:1803.09050.

The outer variables are the weights of the examples of one batch. They start at zero, where the inner step does not move
the network; its derivative is not zero, and says which examples would help. Weights are what is above zero of the
negative derivative, divided by their sum. They are used once: the next batch has new ones.

Deviations: none. (`gains` is the same derivative without the inner step, by one forward-mode product.)
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule


class LearningToReweight(BilevelModule):
    """A weight for each example of the batch at hand, from the derivative of the held-out loss.

    Args:
        backbone, n_classes: of `BilevelModule`.
        batch_size: of the inner steps; that of the data.
        **kwargs: of `BilevelModule`, but `optimizer` and `lr_scheduler`: the update is the method's.
    """

    def __init__(self, backbone: Backbone, n_classes: int = 10, batch_size: int = 100, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if kwargs.get("optimizer") or kwargs.get("lr_scheduler"):
            raise ConfigError("the outer update is LearningToReweight's own; leave optimizer and lr_scheduler out.")
        self.optimizer = Rectified
        self.weights_B = nn.Parameter(torch.zeros(batch_size))

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        return self.weights_B @ self.losses(weights, batch)

    def settle(self) -> None:
        super().settle()
        self.weights_B.data.zero_()

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        found = getattr(data, "batch_size", len(self.weights_B))
        if found != len(self.weights_B):
            raise ConfigError(
                f"there are weights for batch_size={len(self.weights_B)} examples, but a batch of {data.name} has "
                f"{found}; set model.batch_size to {found}."
            )
        if data.meta_batch_size != 1 or data.truncation != 1:
            raise ConfigError(
                f"the weights belong to the one batch at hand, but meta_batch_size={data.meta_batch_size} trainings "
                f"take truncation={data.truncation} steps in an update; set both to 1."
            )
        if data.unroll_steps is not None and data.evaluate == "retrained":
            raise ConfigError("a new training would have no weights of examples; set data.evaluate to carried.")


class Rectified(torch.optim.Optimizer):
    """`p <- max(0, -gradient)`, divided by its sum; 0 where nothing helps."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    helpful = (-p.grad).clamp_min(0)
                    total = helpful.sum()
                    p.copy_(helpful / torch.where(total > 0, total, 1.0))
        return loss


def gains(losses: Callable[[Params], Tensor], weights: Params, query_loss: Callable[[Params], Tensor]) -> Tensor:
    """By how much a gradient step on each of B examples lowers the held-out loss, per step size: `(B,)`.

    The products of the examples' gradients with that of the held-out loss, by one gradient and one forward-mode
    product.
    """
    return jvp(losses, (weights,), (grad(query_loss)(weights),))[1]
