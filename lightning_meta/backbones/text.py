"""Encoders of short texts, rows of token ids, trained from scratch.

Kim: "Convolutional Neural Networks for Sentence Classification" (2014), arXiv:1408.5882: `TextCNN`.

Deviations: the paper starts from pre-trained word vectors and drops features out; here neither. A window may reach over
the end of a text by all but one word, so that features do not depend on how far texts are padded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones.base import Backbone
from lightning_meta.datamodules.tokenizer import PAD
from lightning_meta.errors import ConfigError


class TextBackbone(Backbone):
    """A word embedding; a subclass maps its output to features.

    Args:
        vocabulary: number of token ids. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
        embedding_dim: size of a word's vector.
    """

    def __init__(self, vocabulary: int | None, length: int | None, embedding_dim: int) -> None:
        super().__init__()
        if vocabulary is None or length is None:
            raise ConfigError(
                f"{type(self).__name__} needs vocabulary, the number of token ids, and length, those of an example "
                f"(they are {vocabulary} and {length}); take the data's."
            )
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        # torch's 1 makes words so far apart that training with a usual learning rate moves them little.
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.vocabulary, self.in_shape = vocabulary, (length,)

    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Word vectors `(B, L, D)`, zero in the padding, and where words are `(B, L)`."""
        is_word = ids != PAD
        return self.embedding(ids) * is_word[..., None], is_word


class EmbeddingAverage(TextBackbone):
    """The mean of a text's word vectors: a bag of words.

    Args:
        vocabulary: number of token ids. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
        embedding_dim: size of a word's vector, and of the features.
    """

    def __init__(self, vocabulary: int | None = None, length: int | None = None, embedding_dim: int = 128) -> None:
        super().__init__(vocabulary, length, embedding_dim)
        self.out_features = embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids `(B, length)` to features `(B, embedding_dim)`; a text without words to zero."""
        words, is_word = self.embed(ids)
        return words.sum(1) / is_word.sum(1, keepdim=True).clamp_min(1)


class TextCNN(TextBackbone):
    """Convolutions over the words; each filter's largest response in the text is a feature.

    Args:
        vocabulary: number of token ids. On the command line it follows `data.vocabulary`.
        length: ids of an example. On the command line it follows `data.length`.
        embedding_dim: size of a word's vector.
        filters: of each width.
        widths: how many words in a row the filters see.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        length: int | None = None,
        embedding_dim: int = 128,
        filters: int = 50,
        widths: Sequence[int] = (3, 4, 5),
    ) -> None:
        super().__init__(vocabulary, length, embedding_dim)
        self.widths = tuple(widths)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_dim, filters, width) for width in widths)
        self.out_features = filters * len(self.widths)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids `(B, length)` to features `(B, filters * len(widths))`; a text without words to zero."""
        words, is_word = self.embed(ids)
        features = []
        for convolution, width in zip(self.convolutions, self.widths, strict=True):
            responses = convolution(F.pad(words.mT, (0, width - 1))).relu()
            # Only windows that start with a word count; 0 is the least that any has after ReLU.
            features.append((responses * is_word[:, None]).amax(2))
        return torch.cat(features, dim=1)
