"""MetaOptNet: solve each task by a convex linear classifier, and learn features through the optimality conditions.

Lee, Maji, Ravichandran, Soatto: "Meta-Learning with Differentiable Convex Optimization" (2019), arXiv:1904.03758.

The classifier is a multi-class support vector machine (Crammer, Singer 2001), whose dual, a quadratic program in one
number per support example and class, is a differentiable layer; or ridge regression.

Deviations: no augmentation and no label smoothing. The scale starts at 10, in the authors' code at 1, and the diagonal
of the Gram matrix is raised by a millionth, there by 1. The embedding and the optimizer are those of the config. (That
training has more shots than the test, as in the paper, is a setting of the data: `train.k_shot`.)
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.r2d2 import LinearHead, ridge_regression
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.interop.qpth import import_qpth, solve_qp
from lightning_meta.modules import EmbeddingModule

JITTER = 1e-6  # on the Gram matrix: two equal support features would make it singular


def support_vector_machine(features_SD: Tensor, targets_SC: Tensor, c_reg: float) -> Tensor:
    """Weights `(D, C)` of the linear classifier without bias of Crammer and Singer, `W = X' a`, from its dual.

    The `a (S, C)` that minimises `|X' a|^2 / 2 + sum(margins * a)` where `a <= c_reg * targets` and each row of `a`
    sums to zero; an example's margin is 0 for its class and 1 for the others.

    A class slot without examples has the margin -1: the scores of an example add up to zero over the slots, so that of
    its class is never as much as 1 below that of an empty slot, whose weights are therefore exactly zero.
    """
    x_SD, targets_SC = features_SD.double(), targets_SC.double()
    n_support, n_slots = targets_SC.shape
    eye_SS, eye_CC = (torch.eye(n, dtype=x_SD.dtype, device=x_SD.device) for n in (n_support, n_slots))
    margins_SC = torch.where(targets_SC.any(0), 1 - targets_SC, -1.0)
    dual = solve_qp(
        Q=torch.kron(x_SD @ x_SD.T + JITTER * eye_SS, eye_CC),
        p=margins_SC.flatten(),
        G=torch.eye(n_support * n_slots, dtype=x_SD.dtype, device=x_SD.device),
        h=c_reg * targets_SC.flatten(),
        A=torch.kron(eye_SS, torch.ones_like(eye_CC[:1])),
        b=torch.zeros_like(eye_SS[0]),
    )
    return (x_SD.T @ dual.view(n_support, n_slots)).to(features_SD.dtype)


class MetaOptNet(EmbeddingModule[LinearHead]):
    """A linear classifier of support features at its optimum; logits are `scale * X W` with a learned scale.

    Args:
        backbone: the embedding.
        head: `svm` (the paper's best; needs qpth) or `ridge`.
        n_way: most classes of an episode. None: as many as support examples, which is slow for the SVM where there are
            many per class, as the time grows with the third power of examples x classes. On the command line it follows
            `data.n_way`.
        c_reg: C of the SVM: the most that one support example can weigh.
        ridge_penalty: lambda of ridge regression.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Literal["svm", "ridge"] = "svm",
        n_way: int | None = None,
        c_reg: float = 0.1,
        ridge_penalty: float = 50.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if min(c_reg, ridge_penalty) <= 0:
            raise ConfigError(f"c_reg={c_reg} and ridge_penalty={ridge_penalty} must be positive.")
        if head == "svm":
            import_qpth()
        self.head, self.n_way = head, n_way
        self.c_reg, self.ridge_penalty = c_reg, ridge_penalty
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def adapt_head(self, support: Batch) -> LinearHead:
        one_hot_SC = F.one_hot(support.y, self.n_way or len(support.y))
        if self.head == "svm":
            weights_DC = support_vector_machine(support.x, one_hot_SC, self.c_reg)
        else:
            weights_DC = ridge_regression(support.x, one_hot_SC, self.ridge_penalty)
        return LinearHead(weights_DC, one_hot_SC.any(0))

    def head_loss(self, head: LinearHead, query: Batch) -> TaskOutput:
        logits_QC = exclude_absent(self.log_scale.exp() * query.x @ head.weights, head.present)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)

    def check_task(self, shape: EpisodeShape, split: Split) -> None:
        if self.n_way is not None and shape.n_way > self.n_way:
            raise ConfigError(
                f"{split} episodes are {shape.n_way}-way, but n_way={self.n_way} is the most that this MetaOptNet is "
                "made for; set data.n_way to the largest way and lower that of single splits by data.<split>.n_way."
            )
