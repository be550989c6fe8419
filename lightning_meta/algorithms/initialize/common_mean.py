"""A common mean: a linear model for each task by ridge regression towards weights that all tasks share.

Denevi, Ciliberto, Stamos, Pontil: "Learning To Learn Around A Common Mean" (2018), NeurIPS; the paper's problem is the
biased regularisation of its equation 2, and its data are, among others, the schools of `School`.

Deviations: the mean is learned by gradient descent on the query loss, and so are the penalty and, where there is one,
the embedding; in the paper by an online method, without an embedding and with a penalty chosen by validation. There is
a column of ones for a bias, which is pulled to the mean like all weights.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.r2d2 import ridge_regression, with_ones
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMetric, EpisodicMSE
from lightning_meta.modules import EmbeddingModule


class CommonMean(EmbeddingModule[Tensor]):
    """Linear regression on features, `W = argmin mean squared error + penalty |W - mean|^2` for each task.

    With `learn_mean` off it is plain ridge regression task by task, whose penalty is learned; with an infinite penalty
    it is one linear model for all tasks, without adaptation.

    Args:
        backbone: the embedding; `MLP` without hidden layers is none.
        outputs: numbers of a target.
        penalty: of squared distances from the mean, where the squared error is a mean over the support set.
        learn_penalty: learn it, from `penalty` on.
        learn_mean: learn the mean; otherwise it is zero.
        **kwargs: of `EmbeddingModule`.
    """

    backbone: Backbone
    mean: Tensor
    log_penalty: Tensor

    def __init__(
        self,
        backbone: Backbone,
        outputs: int = 1,
        penalty: float = 1.0,
        learn_penalty: bool = True,
        learn_mean: bool = True,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, metric=metric or EpisodicMSE(), **kwargs)
        if penalty <= 0:
            raise ConfigError(f"penalty={penalty} must be positive; .inf is a common model without adaptation.")
        self.adapts = math.isfinite(penalty)
        if not self.adapts and (learn_penalty or not learn_mean):
            raise ConfigError("penalty=.inf needs learn_mean: true and learn_penalty: false; nothing else is learned.")
        width = self.backbone.out_features + 1
        self._hold("mean", torch.zeros(width, outputs), learn_mean)
        self._hold("log_penalty", torch.tensor(penalty).log(), learn_penalty)

    def _hold(self, name: str, value: Tensor, learn: bool) -> None:
        if learn:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def adapt_head(self, support: Batch) -> Tensor:
        """Weights `(D + 1, Y)`, the last row a bias."""
        if not self.adapts:
            return self.mean
        x_SD = with_ones(support.x)
        return self.mean + ridge_regression(x_SD, support.y - x_SD @ self.mean, len(x_SD) * self.log_penalty.exp())

    def head_loss(self, weights: Tensor, query: Batch) -> TaskOutput:
        preds = with_ones(query.x) @ weights
        return TaskOutput(F.mse_loss(preds, query.y), preds)
