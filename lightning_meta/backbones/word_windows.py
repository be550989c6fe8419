"""Features of each word of a sentence, from what it is made of and the words around it.

Collobert, Weston, Bottou, Karlen, Kavukcuoglu, Kuksa: "Natural Language Processing (Almost) from Scratch" (2011),
arXiv:1103.0398: the window approach, here as convolutions. Words are the means of the vectors of their parts, as in
`core.word_parts`.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones.base import Backbone
from lightning_meta.core.tokenizer import PAD
from lightning_meta.errors import ConfigError, require_at_least, sizes_of_data

STD = 0.3  # of an element of a part's vector; a word is the mean of several


class WordWindows(Backbone):
    """Maps sentences, rows of the ids of the parts of words, to features of each word.

    Shapes: `L` words of a sentence, `G` parts of a word, `D` features. What is padding has the features 0 and changes
    none of a word.

    Args:
        vocabulary: number of ids. On the command line it follows `data.vocabulary`.
        embedding_dim: size of a part's vector, and of a word's.
        features: D.
        width: words that a layer sees at once; odd.
        layers: of convolutions.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        embedding_dim: int = 64,
        features: int = 64,
        width: int = 3,
        layers: int = 2,
    ) -> None:
        super().__init__()
        (vocabulary,) = sizes_of_data(self, vocabulary=(vocabulary, "the number of ids of parts of words"))
        require_at_least(1, embedding_dim=embedding_dim, features=features, width=width, layers=layers)
        if width % 2 == 0:
            raise ConfigError(f"width={width} has no middle; take {width + 1}.")
        self.vocabulary, self.out_features = vocabulary, features
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=STD)
        sizes = [embedding_dim] + [features] * layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, width, padding=width // 2) for before, after in pairwise(sizes)
        )

    def forward(self, ids_BLG: Tensor) -> Tensor:
        """Features `(B, L, D)`."""
        is_part_BLG = ids_BLG != PAD
        is_word_B1L = is_part_BLG.any(-1)[:, None]
        total_BLE = torch.where(is_part_BLG[..., None], self.embedding(ids_BLG), 0).sum(-2)
        x = (total_BLE / is_part_BLG.sum(-1).clamp_min(1)[..., None]).mT
        for convolution in cast(Iterable[nn.Conv1d], self.convolutions):
            x = torch.where(is_word_B1L, F.relu(convolution(x)), 0)
        return x.mT

    def check_data(self, data: Any) -> None:
        ids = getattr(data, "vocabulary", self.vocabulary)
        if not hasattr(data, "tags"):
            raise ConfigError(
                f"WordWindows is for sentences with a tag for each word, but {type(data).__name__} has none; take "
                "TaggedSentences or MadeUpEntities."
            )
        if self.vocabulary < ids:
            raise ConfigError(
                f"the backbone has vectors for vocabulary={self.vocabulary} ids, but {type(data).__name__} has {ids}; "
                "set both to the same number."
            )
