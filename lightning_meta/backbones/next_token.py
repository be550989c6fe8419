"""Readers of a row of tokens, for a head that says at each place which token comes next.

They are right under vmap and second derivatives, unlike the recurrent layers and the fused attention of torch:
`TokenLSTM` loops over a cell in plain operations, `TokenTransformer` has the layers of `core.transformer`.

Shape letters: `B` rows, `L` ids of a row, `D` features, `V` ids of the vocabulary.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.recurrent import LSTMCell
from lightning_meta.core.transformer import CausalTransformer
from lightning_meta.errors import ConfigError, require_at_least, sizes_of_data

STD = 0.1  # of vectors of tokens and places


class NextToken(Backbone):
    """Maps ids `(B, L)` to features of each place `(B, L, D)`, which know of the ids up to it and of no later ones.

    Args:
        vocabulary: number of ids. On the command line it follows `data.vocabulary`.
        length: ids in a row, at most. On the command line it follows `data.length`.
        width: D.
    """

    def __init__(self, vocabulary: int | None, length: int | None, width: int) -> None:
        super().__init__()
        vocabulary, length = sizes_of_data(
            self, vocabulary=(vocabulary, "the number of token ids"), length=(length, "those of a row")
        )
        require_at_least(1, vocabulary=vocabulary, length=length, width=width)
        self.in_shape, self.out_features, self.outputs = (length,), width, vocabulary
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(length, width))
        for table in (self.tokens.weight, self.places):
            nn.init.normal_(table, std=STD)

    def read(self, x_BLD: Tensor) -> Tensor:
        """Features of vectors of tokens at their places."""
        raise NotImplementedError

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.read(self.tokens(ids_BL) + self.places[: ids_BL.shape[1]])

    def check_data(self, data: Any) -> None:
        """Raise `ConfigError` unless its targets are next tokens, of no larger vocabulary."""
        name = getattr(data, "name", type(data).__name__)
        if not getattr(data, "next_tokens", False):
            raise ConfigError(
                f"{type(self).__name__} predicts the next tokens of a row, but the targets of {name} are others; take "
                "data such as Chorales, Topics or Documents, or another backbone."
            )
        if self.outputs is not None and self.outputs < data.vocabulary:
            raise ConfigError(
                f"the backbone is for vocabulary={self.outputs} token ids, but {name} has {data.vocabulary}; set both "
                "to the same number."
            )


class TokenLSTM(NextToken):
    """An LSTM over the tokens: Hochreiter, Schmidhuber: "Long Short-Term Memory" (1997), Neural Computation 9(8).

    Args:
        vocabulary, length: of the data; on the command line they follow it.
        width: of the vectors of tokens, and hidden units.
        layers: one on top of the other.
    """

    def __init__(
        self, vocabulary: int | None = None, length: int | None = None, width: int = 64, layers: int = 1
    ) -> None:
        super().__init__(vocabulary, length, width)
        require_at_least(1, layers=layers)
        self.cells = nn.ModuleList(LSTMCell(width, width) for _ in range(layers))

    def read(self, x_BLD: Tensor) -> Tensor:
        x_LBD = x_BLD.transpose(0, 1)
        for cell in cast(Iterable[LSTMCell], self.cells):
            x_LBD = cell.unroll(x_LBD)
        return x_LBD.transpose(0, 1)


class TokenTransformer(NextToken):
    """A Transformer that reads to the left only, see `core.transformer`.

    Args:
        vocabulary, length: of the data; on the command line they follow it.
        width: D.
        layers: of attention and perceptron.
        heads: of the attention; the width is a multiple of them.
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        length: int | None = None,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__(vocabulary, length, width)
        require_at_least(1, layers=layers)
        self.reader = CausalTransformer(width, layers, heads)

    def read(self, x_BLD: Tensor) -> Tensor:
        return self.reader(x_BLD)[0]
