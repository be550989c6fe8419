"""Matching Networks: the label of a query is a sum of the support's labels, weighted by attention.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: "Matching Networks for One Shot Learning" (2016), arXiv:1606.04080.
Full context embeddings are those of the paper's appendix A.

Deviations: cosines are multiplied by a scale (the paper's is 1) before the softmax. Support and query share one
backbone (the paper's f' and g' may differ). The attention LSTM starts from zeros, where the paper says nothing. No
fine-tuning on the test task.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.backbones.recurrent import LSTMCell
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import cosine_similarities, exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule, StreamModule


class MatchingNet(EmbeddingModule[Batch]):
    """Attention over the support set: softmax of the scaled cosines between a query and all support examples.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding.
        scale: of the cosines.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.scale = scale

    def embed_support(self, features_SD: Tensor) -> Tensor:
        """The paper's g, from the features g' of the backbone."""
        return features_SD

    def embed_query(self, features_QD: Tensor, support_SD: Tensor) -> Tensor:
        """The paper's f, from the features f' of the backbone and the embedded support set."""
        return features_QD

    def adapt_head(self, support: Batch) -> Batch:
        """The support set's embedding and labels, to which every query attends."""
        return Batch(self.embed_support(support.x), support.y)

    def head_loss(self, support: Batch, query: Batch) -> TaskOutput:
        features_QD = self.embed_query(query.x, support.x)
        log_attention_QS = (self.scale * cosine_similarities(features_QD, support.x)).log_softmax(1)
        log_probs_QC = sum_by_class(log_attention_QS, support.y)
        return TaskOutput(F.nll_loss(log_probs_QC, query.y), log_probs_QC)


class FullContextMatchingNet(MatchingNet, StreamModule):
    """Matching Networks in which support and query are embedded in the context of the whole support set.

    The support is read forwards and backwards as a sequence, so its order has an influence.

    Args:
        backbone, scale: of `MatchingNet`.
        processing_steps: how often a query attends to the support before it is compared with it (the paper's K).
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, scale: float = 1.0, processing_steps: int = 5, **kwargs: Any) -> None:
        super().__init__(backbone, scale, **kwargs)
        if processing_steps < 1:
            raise ConfigError(f"processing_steps={processing_steps} must be at least 1; without any, take MatchingNet.")
        self.processing_steps, size = processing_steps, self.backbone.out_features
        self.forwards, self.backwards = LSTMCell(size, size), LSTMCell(size, size)
        # What is read is an input of its own: the same as the paper's concatenation of it with the recurrent state.
        self.attention = LSTMCell(2 * size, size)

    def embed_support(self, features_SD: Tensor) -> Tensor:
        sequence_S1D = features_SD[:, None]
        forwards_S1D = self.forwards.unroll(sequence_S1D)
        backwards_S1D = self.backwards.unroll(sequence_S1D.flip(0)).flip(0)
        return (forwards_S1D + backwards_S1D + sequence_S1D).squeeze(1)

    def embed_query(self, features_QD: Tensor, support_SD: Tensor) -> Tensor:
        return attend(self.attention, features_QD, support_SD, self.processing_steps)


def attend(cell: LSTMCell, features_QD: Tensor, support_SD: Tensor, steps: int) -> Tensor:
    """Queries that have looked at the support set `steps` times by attention, `(Q, D)`: the paper's attention LSTM."""
    h_QD = c_QD = torch.zeros_like(features_QD)
    for _ in range(steps):
        read_QD = (h_QD @ support_SD.T).softmax(1) @ support_SD
        h_QD, c_QD = cell(torch.cat([features_QD, read_QD], dim=1), (h_QD, c_QD))
        h_QD = h_QD + features_QD
    return h_QD


def sum_by_class(log_weights_QS: Tensor, labels_S: Tensor) -> Tensor:
    """Logarithm of the summed weights of each class, `(Q, C)`; -inf for class slots without examples."""
    belongs_SC = F.one_hot(labels_S, len(labels_S)).bool()
    # Not -inf: for a class without examples the backward pass would have nan, which anomaly detection stops at.
    lowest = torch.finfo(log_weights_QS.dtype).min
    log_sums_QC = torch.where(belongs_SC, log_weights_QS[:, :, None], lowest).logsumexp(1)
    return exclude_absent(log_sums_QC, belongs_SC.any(0))
