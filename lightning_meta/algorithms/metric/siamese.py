"""Siamese networks: learn whether two images show the same class, then classify a query by its best match.

Koch, Zemel, Salakhutdinov: "Siamese Neural Networks for One-shot Image Recognition" (2015), ICML workshop on deep
learning.

Deviations: pairs are all support x query pairs of an episode, weighted so that pairs of the same and of different
classes count half each, where the paper draws as many of either kind. The embedding is the backbone's; the paper's
network is larger, ends in a layer of sigmoid units and reads 105x105 pixels. No affine distortions and no learning
rates or penalties of single layers. With several examples of a class the best match decides; the paper has one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.modules import EpisodicModule


class EmbeddedSupport(NamedTuple):
    """Features of the support `(S, D)`, its labels `(S,)`, and statistics for the query's normalisation."""

    features: Tensor
    labels: Tensor
    statistics: Params


class Siamese(EpisodicModule[EmbeddedSupport]):
    """The log-odds that two images are of the same class are a weighted L1 distance of their features plus a bias.

    Logs `verification_acc`: how often the probability is on the right side of 1/2, where pairs of the same and of
    different classes count half each. The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(self, backbone: Backbone, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.backbone, self.score = backbone, nn.Linear(backbone.out_features, 1)

    def adapt(self, support: Batch) -> EmbeddedSupport:
        statistics = support_statistics(self.backbone, {}, support.x)
        return EmbeddedSupport(self.backbone(support.x), support.y, statistics)

    def query_loss(self, support: EmbeddedSupport, query: Batch) -> TaskOutput:
        features_QD = functional_call(self.backbone, support.statistics, (query.x,))
        log_odds_QS = self.score((features_QD[:, None] - support.features).abs()).squeeze(-1)
        same_QS = query.y[:, None] == support.labels
        weights_QS = balanced_weights(same_QS, log_odds_QS.dtype)
        loss = F.binary_cross_entropy_with_logits(
            log_odds_QS, same_QS.to(log_odds_QS.dtype), weights_QS, reduction="sum"
        )
        right_QS = (log_odds_QS > 0) == same_QS
        return TaskOutput(
            loss, best_of_class(log_odds_QS, support.labels), {"verification_acc": (weights_QS * right_QS).sum()}
        )


def balanced_weights(same: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of sum 1 with which pairs of the same and of different classes count half each."""
    weights = [kind / (2 * kind.sum().clamp_min(1)) for kind in (same.to(dtype), (~same).to(dtype))]
    return weights[0] + weights[1]


def best_of_class(scores_QS: Tensor, labels_S: Tensor) -> Tensor:
    """The highest score among the support examples of each class, `(Q, C)`; -inf for class slots without examples."""
    belongs_SC = F.one_hot(labels_S, len(labels_S)).bool()
    return torch.where(belongs_SC, scores_QS[:, :, None], -torch.inf).amax(1)
