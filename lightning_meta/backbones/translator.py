"""A small Transformer from sentences of one language to those of another.

Vaswani et al.: "Attention Is All You Need" (2017), arXiv:1706.03762, of the layers of `core.transformer`: so it is
right under vmap and second derivatives.

Deviations: normalisation stands before each part, places have learned vectors, and nothing is dropped out.

Shape letters: `S` ids of a sentence, `L` of its translation, `Q` sentences, `D` features, `V` ids of the vocabulary.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from lightning_meta.core.sentences import up_to_end
from lightning_meta.core.tokenizer import PAD
from lightning_meta.core.transformer import Layer, LayerNorm, Memory
from lightning_meta.errors import require_at_least, sizes_of_data

START = PAD  # what the decoder reads before the first word; a translation has no padding there
STD = 0.1  # of vectors of words and places


class Translator(nn.Module):
    """Predicts each word of a translation from the sentence and the words before it.

    Args:
        vocabulary: number of ids, of each side. On the command line it follows `data.vocabulary`.
        length: ids in a row. On the command line it follows `data.length`.
        width: D.
        layers: of the encoder, and of the decoder.
        heads: of the attention; the width is a multiple of them.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        length: int | None = None,
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
    ) -> None:
        super().__init__()
        vocabulary, length = sizes_of_data(
            self, vocabulary=(vocabulary, "the number of token ids"), length=(length, "those of a row")
        )
        require_at_least(1, vocabulary=vocabulary, length=length, layers=layers)
        self.vocabulary, self.length = vocabulary, length
        self.source, self.target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.source_places = nn.Parameter(torch.empty(length, width))
        self.target_places = nn.Parameter(torch.empty(length, width))
        for table in (self.source.weight, self.target.weight, self.source_places, self.target_places):
            nn.init.normal_(table, std=STD)
        self.encoder = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.decoder = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.reader = nn.ModuleList(Layer(width, heads) for _ in range(layers))  # of the encoder's rows
        self.norm, self.out = LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x_QS: Tensor, y_QL: Tensor | None = None) -> Tensor:
        """Logits `(Q, L, V)` of each word of the translations `y` where those before it are given.

        Without `y` translations `(Q, length)`, always by the likeliest next word; padding after the end.
        """
        if y_QL is None:
            return self._translate(x_QS)
        before_QL = torch.cat([torch.full_like(y_QL[:, :1], START), y_QL[:, :-1]], dim=1)
        return self._decode(before_QL, self._encode(x_QS), _are_words(x_QS))[0]

    def _translate(self, x_QS: Tensor) -> Tensor:
        encoded, seen_Q1S = self._encode(x_QS), _are_words(x_QS)
        last_Q1, memories = torch.full_like(x_QS[:, :1], START), None
        found = []
        for _ in range(self.length):
            logits_Q1V, memories = self._decode(last_Q1, encoded, seen_Q1S, memories)
            last_Q1 = logits_Q1V.argmax(-1)
            found.append(last_Q1)
        return up_to_end(torch.cat(found, dim=1))

    def _encode(self, x_QS: Tensor) -> list[Memory]:
        """What each layer of the decoder reads of the sentences."""
        x_QSD, seen_Q1S = self.source(x_QS) + self.source_places[: x_QS.shape[1]], _are_words(x_QS)
        for layer in cast(Iterable[Layer], self.encoder):
            x_QSD = layer(x_QSD, layer.memory(x_QSD), seen_Q1S)
        return [reader.memory(x_QSD) for reader in cast(Iterable[Layer], self.reader)]

    def _decode(
        self, before_QL: Tensor, encoded: list[Memory], seen_Q1S: Tensor, memories: list[Memory] | None = None
    ) -> tuple[Tensor, list[Memory]]:
        """Logits `(Q, L, V)` after words that follow those of `memories`; and the memories of all."""
        rows, known = before_QL.shape[1], memories[0][0].shape[1] if memories else 0
        x_QLD = self.target(before_QL) + self.target_places[known : known + rows]
        grown: list[Memory] = []
        layers = zip(self.decoder, self.reader, encoded, strict=True)
        for place, (layer, reader, sentence) in enumerate(cast(Iterable[tuple[Layer, Layer, Memory]], layers)):
            keys, values = layer.memory(x_QLD)
            if memories:
                keys, values = (torch.cat(parts, dim=1) for parts in zip(memories[place], (keys, values), strict=True))
            grown.append((keys, values))
            x_QLD = layer(x_QLD, grown[-1], x_QLD.new_ones(rows, known + rows).tril(known))
            x_QLD = reader(x_QLD, sentence, seen_Q1S)
        return self.out(self.norm(x_QLD)), grown


def _are_words(x_QS: Tensor) -> Tensor:
    """Which ids `(Q, 1, S)` are read: not padding, but the first in any case."""
    first_S = torch.arange(x_QS.shape[1], device=x_QS.device) == 0
    return ((x_QS != PAD) | first_S)[:, None]
