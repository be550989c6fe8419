"""R2-D2: solve each task by ridge regression on learned features, in closed form, and learn through the solution.

Bertinetto, Henriques, Torr, Vedaldi: "Meta-learning with differentiable closed-form solvers" (2019), arXiv:1805.08136.

As in the authors' code, features have a column of ones for a bias, the penalty counts once for each support example and
is not learned unless asked for (the paper learns it), and training draws the number of shots of each episode anew.

Deviations: queries are as many whatever the number of shots; the authors share out the same images between support and
query. The scale starts at 10, as theirs does on Omniglot and CIFAR-FS (on mini-ImageNet at 0.0001).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.errors import ConfigError
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


def with_ones(features_BD: Tensor) -> Tensor:
    """Features `(B, D + 1)` whose last column makes the last row of a weight matrix a bias."""
    return F.pad(features_BD, (0, 1), value=1.0)


def draw_shots(labels_S: Tensor) -> Tensor:
    """Which support examples stay `(S,)`: the same number of each class, drawn from 1 to as many as there are.

    A class with fewer examples than the number drawn keeps all of them.
    """
    key_S = torch.rand_like(labels_S.float())  # puts the examples of a class in a random order
    same_SS = labels_S[:, None] == labels_S
    place_S = (same_SS & (key_S < key_S[:, None])).sum(1)
    most = same_SS.sum(1).amax()
    return place_S <= (torch.rand_like(key_S.sum()) * most).floor()


class R2D2(EmbeddingModule[LinearHead]):
    """Ridge regression from features to one-hot labels; logits are `alpha (X W + b) + beta`.

    `alpha` and `beta` are learned with the embedding. (`beta`, one number for all classes, does not change a
    cross-entropy over classes; the paper shares it with a head for two classes.)

    The way is read from the episode, so training may use more classes than testing.

    Args:
        backbone: the embedding.
        penalty: lambda for each support example: S of them are fitted with a penalty of S times as much.
        learn_penalty: learn lambda, from `penalty` on.
        random_shots: in training, learn from a number of shots that is drawn for each task, from 1 to those of its
            support set; the other examples have no weight.
        **kwargs: of `EmbeddingModule`.
    """

    log_lambda: Tensor

    def __init__(
        self,
        backbone: Backbone,
        penalty: float = 50.0,
        learn_penalty: bool = False,
        random_shots: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if penalty <= 0:
            raise ConfigError(f"penalty={penalty} must be positive.")
        self.random_shots, log_lambda = random_shots, torch.tensor(penalty).log()
        if learn_penalty:
            self.log_lambda = nn.Parameter(log_lambda)
        else:
            self.register_buffer("log_lambda", log_lambda)
        self.alpha = nn.Parameter(torch.tensor(10.0))
        self.beta = nn.Parameter(torch.tensor(0.0))

    def adapt_head(self, support: Batch) -> LinearHead:
        one_hot_SC = F.one_hot(support.y, len(support.y))  # class slots, see core/prototypes.py
        drawn = self.random_shots and self.training
        kept_S = draw_shots(support.y) if drawn else torch.ones_like(support.y, dtype=torch.bool)
        # An example without features or target has no say: its part of the solution is zero.
        weights_DC = ridge_regression(
            with_ones(support.x) * kept_S[:, None], one_hot_SC * kept_S[:, None], kept_S.sum() * self.log_lambda.exp()
        )
        return LinearHead(weights_DC, one_hot_SC.any(0))

    def head_loss(self, head: LinearHead, query: Batch) -> TaskOutput:
        logits_QC = self.alpha * (with_ones(query.x) @ head.weights) + self.beta
        logits_QC = exclude_absent(logits_QC, head.present)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
