"""Siamese networks: learn whether two images show the same class, then classify a query by its best match.

Koch, Zemel, Salakhutdinov: "Siamese Neural Networks for One-shot Image Recognition" (2015), ICML workshop on deep
learning.

Deviations: pairs are all support x query pairs of an episode, weighted so that pairs of the same and of different
classes count half each, where the paper draws as many of either kind. The embedding is the backbone's; the paper's
network is larger, ends in a layer of sigmoid units and reads 105x105 pixels. No affine distortions and no learning
rates or penalties of single layers. With several examples of a class the best match decides; the paper has one. The
cross-entropy over candidates is not the paper's loss, but what its one-shot trials ask for.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.modules import EmbeddingModule


class Siamese(EmbeddingModule[Batch]):
    """The log-odds that two images are of the same class are a weighted L1 distance of their features plus a bias.

    Logs `verification_acc`: how often the probability is on the right side of 1/2, where pairs of the same and of
    different classes count half each. The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding.
        loss: `binary`, the cross-entropy of each pair by itself (the paper's), or the `cross_entropy` of the class of a
            query, whose logits are the log-odds of the best match in each class. That leaves the bias where it is, so
            that `verification_acc` is then of no use.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, loss: Literal["binary", "cross_entropy"] = "binary", **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.loss = loss
        self.score = nn.Linear(self.backbone.out_features, 1)

    def adapt_head(self, support: Batch) -> Batch:
        """The support set's features and labels, with which every query is compared."""
        return support

    def head_loss(self, support: Batch, query: Batch) -> TaskOutput:
        log_odds_QS = self.score((query.x[:, None] - support.x).abs()).squeeze(-1)
        same_QS = query.y[:, None] == support.y
        weights_QS = balanced_weights(same_QS, log_odds_QS.dtype)
        logits_QC = best_of_class(log_odds_QS, support.y)
        if self.loss == "cross_entropy":
            loss = F.cross_entropy(logits_QC, query.y)
        else:
            loss = F.binary_cross_entropy_with_logits(
                log_odds_QS, same_QS.to(log_odds_QS.dtype), weights_QS, reduction="sum"
            )
        right_QS = (log_odds_QS > 0) == same_QS
        return TaskOutput(loss, logits_QC, {"verification_acc": (weights_QS * right_QS).sum()})


def balanced_weights(same: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of sum 1 with which pairs of the same and of different classes count half each."""
    weights = [kind / (2 * kind.sum().clamp_min(1)) for kind in (same.to(dtype), (~same).to(dtype))]
    return weights[0] + weights[1]


def best_of_class(scores_QS: Tensor, labels_S: Tensor) -> Tensor:
    """The highest score among the support examples of each class, `(Q, C)`; -inf for class slots without examples."""
    belongs_SC = F.one_hot(labels_S, len(labels_S)).bool()
    return torch.where(belongs_SC, scores_QS[:, :, None], -torch.inf).amax(1)
