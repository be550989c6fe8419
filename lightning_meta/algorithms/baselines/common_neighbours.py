"""Common neighbours: complete a relation of a graph by the candidates whose neighbours are those of the known tails.

What GMatching (Xiong et al. 2018, arXiv:1808.09040) is compared with where nothing is trained: the nearest neighbour
among pairs of entities, by the cosine of counts of their neighbours.

No deviations: it is no algorithm of a paper.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.g_matching import check_pairs, true_pairs
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.metrics import EpisodicMetric, EpisodicMRR
from lightning_meta.modules import EpisodicModule


class CommonNeighbours(EpisodicModule[Tensor]):
    """The score of a candidate: cosines of heads' and of tails' neighbours, mean over the support pairs.

    Training learns one number, by which scores are multiplied to be logits, and which changes no order: `test` it.

    Args:
        metric: None: `EpisodicMRR`.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(self, metric: EpisodicMetric | None = None, **kwargs: Any) -> None:
        super().__init__(metric=metric or EpisodicMRR(), **kwargs)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def adapt(self, support: Batch) -> Tensor:
        """The known pairs `(K, 2, M, 2)`."""
        return true_pairs(support)

    def query_loss(self, known_K2M2: Tensor, query: Batch) -> TaskOutput:
        scale = self.log_scale.exp()
        scores_QC = scale * cosines(query.x[:, :, None], known_K2M2, scale.dtype).sum(-1).mean(-1)
        return TaskOutput(F.cross_entropy(scores_QC, query.y), scores_QC)

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        check_pairs(self, datamodule, split)


def cosines(a_M2: Tensor, b_M2: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines `(...)` between the sets of neighbours `(..., M, 2)` of entities; of one without any it is 0."""
    there_a_M, there_b_M = (neighbours[..., 1] != PAD for neighbours in (a_M2, b_M2))
    same_MM = (a_M2[..., :, None, :] == b_M2[..., None, :, :]).all(-1) & there_a_M[..., :, None]
    sizes = (there_a_M.sum(-1) * there_b_M.sum(-1)).clamp_min(1)
    return same_MM.sum((-2, -1)) / sizes.to(dtype).sqrt()
