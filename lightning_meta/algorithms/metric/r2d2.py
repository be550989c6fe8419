"""R2-D2: solve each task by ridge regression on learned features, in closed form, and learn through the solution.

Bertinetto, Henriques, Torr, Vedaldi: "Meta-learning with differentiable closed-form solvers" (2019), arXiv:1805.08136.

Deviations: the embedding is the backbone of the config, by default Conv4, not the paper's wider network that joins the
features of its last two layers. The way and the shot of training are those of the data, not drawn anew for each
episode. The scale starts at 10 and lambda at 1.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.modules import EmbeddingModule


class LinearHead(NamedTuple):
    """Weights `(D, C)`, and which class slots have examples `(C,)`."""

    weights: Tensor
    present: Tensor


def ridge_regression(features_SD: Tensor, targets_SC: Tensor, penalty: Tensor | float) -> Tensor:
    """The `W (D, C)` that minimises `|X W - Y|^2 + penalty |W|^2`.

    By Woodbury's identity `(X'X + penalty I)^-1 X' = X' (XX' + penalty I)^-1`: a system as large as the support set,
    not as the features. In float64: half precision has no solver, and with a small penalty single precision is coarse.
    """
    x_SD, y_SC = features_SD.double(), targets_SC.double()
    gram_SS = x_SD @ x_SD.T + penalty * torch.eye(len(x_SD), dtype=x_SD.dtype, device=x_SD.device)
    # solve_ex: solve would wait for the GPU to see whether the matrix is singular.
    return (x_SD.T @ torch.linalg.solve_ex(gram_SS, y_SC).result).to(features_SD.dtype)


class R2D2(EmbeddingModule[LinearHead]):
    """Ridge regression from features to one-hot labels; logits are `alpha X W + beta`.

    The penalty lambda, `alpha` and `beta` are learned with the embedding. (`beta`, one number for all classes, does not
    change a cross-entropy over classes; the paper shares it with a head for two classes.)

    The way is read from the episode, so training may use more classes than testing.

    Args:
        backbone: the embedding.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: nn.Module, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.log_lambda = nn.Parameter(torch.tensor(0.0))
        self.alpha = nn.Parameter(torch.tensor(10.0))
        self.beta = nn.Parameter(torch.tensor(0.0))

    def adapt_head(self, support: Batch) -> LinearHead:
        one_hot_SC = F.one_hot(support.y, len(support.y))  # class slots, see core/prototypes.py
        weights_DC = ridge_regression(support.x, one_hot_SC, self.log_lambda.exp())
        return LinearHead(weights_DC, one_hot_SC.any(0))

    def head_loss(self, head: LinearHead, query: Batch) -> TaskOutput:
        logits_QC = exclude_absent(self.alpha * query.x @ head.weights + self.beta, head.present)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
