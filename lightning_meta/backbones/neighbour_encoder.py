"""Entities of a graph by their neighbours, as in GMatching (arXiv:1808.09040), section 4.1."""

import torch
from torch import Tensor, nn

from lightning_meta.core.tokenizer import PAD
from lightning_meta.errors import require_at_least, sizes_of_data

STD = 0.1  # of vectors of relations and entities


class NeighbourEncoder(nn.Module):
    """Maps pairs of entities `(B, 2, M, 2)`, ids of relation and entity of the neighbours of each, to `(B, 2 * width)`.

    An entity is `tanh` of the mean, over its neighbours, of a linear map of the vectors of relation and entity. Padding
    does not count, and neither does the order of neighbours.

    Args:
        vocabulary: number of ids. On the command line it follows `data.vocabulary`.
        width: size of a vector.
    """

    def __init__(self, vocabulary: int | None = None, width: int = 32) -> None:
        super().__init__()
        (vocabulary,) = sizes_of_data(self, vocabulary=(vocabulary, "the number of ids"))
        require_at_least(1, vocabulary=vocabulary, width=width)
        self.vocabulary, self.out_features = vocabulary, 2 * width
        self.vectors, self.linear = nn.Embedding(vocabulary, width), nn.Linear(2 * width, width)
        nn.init.normal_(self.vectors.weight, std=STD)

    def forward(self, pairs_B2M2: Tensor) -> Tensor:
        there_B2M1 = (pairs_B2M2[..., 1:] != PAD).to(self.linear.weight.dtype)
        messages_B2MD = self.linear(self.vectors(pairs_B2M2).flatten(-2))
        mean_B2D = (messages_B2MD * there_B2M1).sum(-2) / there_B2M1.sum(-2).clamp_min(1)
        return torch.tanh(mean_B2D).flatten(-2)
