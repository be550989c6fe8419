"""Ridge regression on one task at a time, and the mean of its targets: what can be done without other tasks.

Hoerl, Kennard: "Ridge Regression: Biased Estimation for Nonorthogonal Problems" (1970), Technometrics 12.

No deviations: the intercept is not penalised.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.r2d2 import ridge_regression
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMetric, EpisodicMSE
from lightning_meta.modules import EmbeddingModule


class Fit(NamedTuple):
    """Weights `(D, Y)`, and the mean features and targets through which they go."""

    weights: Tensor
    x: Tensor
    y: Tensor


class RidgePerTask(EmbeddingModule[Fit]):
    """`W = argmin mean squared error + penalty |W|^2`, with a free intercept, on the support set of each task.

    Training learns nothing but the penalty. With an infinite one, the prediction is the mean of the support targets.

    Args:
        backbone: features of the inputs; `MLP` without hidden layers leaves them as they are.
        penalty: where training starts; `.inf`: nothing is learned.
        metric: None: `EpisodicMSE`.
        **kwargs: of `EmbeddingModule`.
    """

    log_penalty: Tensor

    def __init__(
        self, backbone: Backbone, penalty: float = 1.0, metric: EpisodicMetric | None = None, **kwargs: Any
    ) -> None:
        super().__init__(backbone, metric=metric or EpisodicMSE(), **kwargs)
        if penalty <= 0:
            raise ConfigError(f"penalty={penalty} must be positive; .inf predicts the mean of the support set.")
        log_penalty = torch.tensor(float(penalty)).log()
        if math.isfinite(penalty):
            self.log_penalty = nn.Parameter(log_penalty)
        else:
            self.register_buffer("log_penalty", log_penalty)
        self.is_mean = math.isinf(penalty)

    def adapt_head(self, support: Batch) -> Fit:
        x_D, y_Y = support.x.mean(0), support.y.mean(0)
        if self.is_mean:
            return Fit(support.x.new_zeros(support.x.shape[1], support.y.shape[1]), x_D, y_Y)
        penalty = len(support.x) * self.log_penalty.exp()
        return Fit(ridge_regression(support.x - x_D, support.y - y_Y, penalty), x_D, y_Y)

    def head_loss(self, fit: Fit, query: Batch) -> TaskOutput:
        preds = fit.y + (query.x - fit.x) @ fit.weights
        return TaskOutput(F.mse_loss(preds, query.y), preds)
