"""GMatching: complete a relation of a graph by comparing pairs of entities with the few that are known.

Xiong, Yu, Chang, Guo, Wang: "One-Shot Relational Learning for Knowledge Graphs" (2018), EMNLP, arXiv:1808.09040: a pair
is its entities' neighbours (`NeighbourEncoder`), and the matching processor is the attention LSTM of Matching Networks.
As in the authors' code, a layer with a residual stands between the two.

Deviations: vectors of entities and relations start at random; the paper takes those of TransE, DistMult or ComplEx. All
candidates of a query count in the loss, with a margin; the paper draws one. Several support pairs are the
mean of their encodings; the paper has one.

Shape letters: `P` pairs, `C` candidates, `M` neighbours.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.matching_net import attend
from lightning_meta.backbones import NeighbourEncoder
from lightning_meta.backbones.recurrent import LSTMCell
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.core.transformer import LayerNorm
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.metrics import EpisodicMetric, EpisodicMRR
from lightning_meta.modules import EpisodicModule


class GMatching(EpisodicModule[Tensor]):
    """Score each candidate by the match of its pair with the support pairs.

    Args:
        backbone: encodes pairs.
        processing_steps: how often a pair looks at the support before it is compared; 0: not at all.
        margin: by which the true candidate is to beat each other one.
        metric: None: `EpisodicMRR`.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self,
        backbone: NeighbourEncoder,
        processing_steps: int = 4,
        margin: float = 5.0,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(metric=metric or EpisodicMRR(), **kwargs)
        require_at_least(0, processing_steps=processing_steps)
        if margin <= 0:
            raise ConfigError(f"margin={margin} must be positive.")
        self.backbone, self.processing_steps, self.margin = backbone, processing_steps, margin
        width = backbone.out_features
        self.layer = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.norm, self.attention = LayerNorm(width), LSTMCell(2 * width, width)

    def encode(self, pairs_P2M2: Tensor) -> Tensor:
        """Pairs as vectors `(P, D)`."""
        pairs_PD = self.backbone(pairs_P2M2)
        return self.norm(pairs_PD + self.layer(pairs_PD))

    def adapt(self, support: Batch) -> Tensor:
        """What the relation is like `(1, D)`."""
        return self.encode(true_pairs(support)).mean(0, keepdim=True)

    def query_loss(self, relation_1D: Tensor, query: Batch) -> TaskOutput:
        pairs_PD = self.encode(query.x.flatten(0, 1))
        if self.processing_steps:
            pairs_PD = attend(self.attention, pairs_PD, relation_1D, self.processing_steps)
        scores_QC = (pairs_PD @ relation_1D.T).reshape(query.x.shape[:2])
        return TaskOutput(margin_loss(scores_QC, query.y, self.margin), scores_QC)

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        """Raise `ConfigError` when a split's episodes are no pairs, or have other ids than the backbone."""
        check_pairs(self, datamodule, split)
        if (ids := getattr(datamodule, "vocabulary", 0)) > self.backbone.vocabulary:
            raise ConfigError(
                f"the backbone is for vocabulary={self.backbone.vocabulary} ids, but {datamodule.name} has {ids}; take "
                "the data's."
            )


def true_pairs(batch: Batch) -> Tensor:
    """Of heads with candidates `(P, C, 2, M, 2)` those with their tails, `(P, 2, M, 2)`."""
    return batch.x[torch.arange(len(batch.y), device=batch.y.device), batch.y]


def margin_loss(scores_QC: Tensor, answers_Q: Tensor, margin: float) -> Tensor:
    """By how much wrong candidates are not beaten by the margin, mean over all of them."""
    is_true_QC = torch.arange(scores_QC.shape[1], device=scores_QC.device) == answers_Q[:, None]
    true_Q1 = torch.where(is_true_QC, scores_QC, 0).sum(1, keepdim=True)
    short_QC = torch.where(is_true_QC, 0, F.relu(margin - true_Q1 + scores_QC))
    return short_QC.sum() / (scores_QC.numel() - len(scores_QC))


def check_pairs(module: EpisodicModule, datamodule: EpisodicDataModule, split: Split) -> None:
    """Raise `ConfigError` when a split's queries are no heads with candidates `(Q, C, 2, M, 2)`."""
    query = datamodule.dataset(split)[0].query
    if query.x.dim() != 5 or query.x.is_floating_point():
        raise ConfigError(
            f"{type(module).__name__} compares pairs of entities by their neighbours, but the examples of "
            f"{datamodule.name} have the shape {tuple(query.x.shape[1:])}; take RuleGraph or GraphFolder."
        )
