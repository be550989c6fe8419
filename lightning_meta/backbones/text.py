"""Encoders of short texts, rows of token ids, whose words are known from the texts of meta-training alone.

Iyyer, Manjunatha, Boyd-Graber, Daumé: "Deep Unordered Composition Rivals Syntactic Methods for Text Classification"
(2015), ACL: `EmbeddingAverage` and its word dropout. Kim: "Convolutional Neural Networks for Sentence Classification"
(2014), arXiv:1408.5882: `TextCNN`.

Deviations: word vectors do not come from other texts, and features are not dropped out. The average is weighted by
inverse document frequencies, and no layers follow it. A window of `TextCNN` may reach over the end of a text by all but
one word, so that features do not depend on how far texts are padded.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones.base import FittedBackbone
from lightning_meta.core.tokenizer import FIRST, PAD
from lightning_meta.core.word_statistics import inverse_document_frequencies, occurrences, ppmi_vectors
from lightning_meta.errors import ConfigError, sizes_of_data

# Of an element of a word's vector. torch's 1 makes words so far apart that training with a usual learning rate moves
# them little.
WORD_STD = 0.1


class TextBackbone(FittedBackbone):
    """Maps texts, rows of token ids.

    Args:
        vocabulary: number of token ids. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
    """

    def __init__(self, vocabulary: int | None, length: int | None) -> None:
        super().__init__()
        vocabulary, length = sizes_of_data(
            self, vocabulary=(vocabulary, "the number of token ids"), length=(length, "those of an example")
        )
        self.vocabulary, self.in_shape = vocabulary, (length,)

    def check_data(self, data: Any) -> None:
        ids = getattr(data, "vocabulary", self.vocabulary)
        if self.vocabulary < ids:
            raise ConfigError(
                f"the backbone has vectors for vocabulary={self.vocabulary} token ids, but {type(data).__name__} has "
                f"{ids}; set both to the same number."
            )

    def words(self) -> Tensor:
        """Which ids `(vocabulary,)` are words: not padding, nor what all unknown words share."""
        return torch.arange(self.vocabulary) >= FIRST

    def occurrences(self, inputs: Tensor) -> Tensor:
        """Which texts have which words, sparse `(E, vocabulary)`."""
        return occurrences(inputs, self.words())


class BagOfWords(TextBackbone):
    """How often a text has each word, times the word's inverse document frequency. Nothing is trained.

    Args:
        vocabulary: number of token ids, and of features. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
    """

    word_weights: Tensor

    def __init__(self, vocabulary: int | None = None, length: int | None = None) -> None:
        super().__init__(vocabulary, length)
        self.out_features = self.vocabulary
        self.register_buffer("word_weights", self.words().float())

    def fit(self, inputs: Tensor) -> None:
        self.word_weights.copy_(inverse_document_frequencies(self.occurrences(inputs)) * self.words())

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids `(B, length)` to features `(B, vocabulary)`."""
        counts = torch.zeros_like(self.word_weights).expand(len(ids), -1)
        return counts.scatter_add(1, ids, self.word_weights[ids])


class EmbeddedTextBackbone(TextBackbone):
    """A vector for each word; a subclass maps those of a text to features.

    Args:
        vocabulary: number of token ids. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
        embedding_dim: size of a word's vector.
        word_vectors: where training starts: `ppmi`, words that occur with the same others in the texts of meta-training
            are alike (see `core.word_statistics`), or `random`. Words without any company there are random anyhow.
    """

    def __init__(
        self, vocabulary: int | None, length: int | None, embedding_dim: int, word_vectors: Literal["ppmi", "random"]
    ) -> None:
        super().__init__(vocabulary, length)
        if word_vectors not in ("ppmi", "random"):
            raise ConfigError(f"word_vectors={word_vectors!r} must be ppmi or random.")
        self.word_vectors = word_vectors
        self.embedding = nn.Embedding(self.vocabulary, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=WORD_STD)

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> None:
        if self.word_vectors == "ppmi":
            vectors_VD = ppmi_vectors(self.occurrences(inputs), self.embedding.embedding_dim)
            found_V = vectors_VD.any(1)
            vectors_VD *= WORD_STD / vectors_VD[found_V].square().mean().sqrt()
            weight_VD = self.embedding.weight
            weight_VD.copy_(torch.where(found_V[:, None].to(weight_VD.device), vectors_VD.to(weight_VD), weight_VD))


class EmbeddingAverage(EmbeddedTextBackbone):
    """The mean of a text's word vectors, weighted by inverse document frequencies. Unknown words do not count.

    Args:
        vocabulary: number of token ids. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
        embedding_dim: size of a word's vector, and of the features.
        word_vectors: `ppmi` or `random`, see `EmbeddedTextBackbone`.
        word_dropout: probability with which a word is left out in training.
    """

    word_weights: Tensor

    def __init__(
        self,
        vocabulary: int | None = None,
        length: int | None = None,
        embedding_dim: int = 128,
        word_vectors: Literal["ppmi", "random"] = "ppmi",
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__(vocabulary, length, embedding_dim, word_vectors)
        if not 0 <= word_dropout < 1:
            raise ConfigError(f"word_dropout={word_dropout} must be at least 0 and below 1.")
        self.word_dropout, self.out_features = word_dropout, embedding_dim
        self.register_buffer("word_weights", self.words().float())

    def fit(self, inputs: Tensor) -> None:
        super().fit(inputs)
        self.word_weights.copy_(inverse_document_frequencies(self.occurrences(inputs)) * self.words())

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids `(B, length)` to features `(B, embedding_dim)`; a text without words to zero."""
        weights = F.dropout(self.word_weights[ids], self.word_dropout, self.training)
        total = weights.sum(1, keepdim=True)
        return (self.embedding(ids) * weights[..., None]).sum(1) / torch.where(total > 0, total, 1)


class TextCNN(EmbeddedTextBackbone):
    """Convolutions over the words; each filter's largest response in the text is a feature.

    Args:
        vocabulary: number of token ids. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
        embedding_dim: size of a word's vector.
        filters: of each width.
        widths: how many words in a row the filters see.
        word_vectors: `ppmi` or `random`, see `EmbeddedTextBackbone`.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        length: int | None = None,
        embedding_dim: int = 128,
        filters: int = 50,
        widths: Sequence[int] = (3, 4, 5),
        word_vectors: Literal["ppmi", "random"] = "ppmi",
    ) -> None:
        super().__init__(vocabulary, length, embedding_dim, word_vectors)
        self.widths = tuple(widths)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_dim, filters, width) for width in widths)
        self.out_features = filters * len(self.widths)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids `(B, length)` to features `(B, filters * len(widths))`; a text without words to zero."""
        is_word = ids != PAD
        words = self.embedding(ids) * is_word[..., None]
        features = []
        for convolution, width in zip(self.convolutions, self.widths, strict=True):
            responses = convolution(F.pad(words.mT, (0, width - 1))).relu()
            # Only windows that start with a word count; 0 is the least that any has after ReLU.
            features.append((responses * is_word[:, None]).amax(2))
        return torch.cat(features, dim=1)
