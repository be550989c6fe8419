"""Fast weights: matrices that change with every row of a stream, by one outer product each.

The delta rule as a write to such a matrix: Schlag, Irie, Schmidhuber: "Linear Transformers Are Secretly Fast Weight
Programmers" (2021), arXiv:2102.11174. A matrix that writes to itself: Irie, Schlag, Csordas, Schmidhuber: "A Modern
Self-Referential Weight Matrix That Learns to Modify Itself" (2022), arXiv:2202.05780. Layers are those of the authors'
code for few-shot learning, without dropout.

A stream is read row by row. Of the next row there may be B alternatives, which do not see each other: the queries of an
episode. What a row writes is returned beside its output, so that queries need no matrices of their own.

Shape letters: `B` alternatives for the next row, `D` features, `H` heads, `E` = D / H inputs of a head, `F` outputs of
its matrix.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core.transformer import LayerNorm
from lightning_meta.errors import ConfigError


class Write(NamedTuple):
    """What each row adds to the matrices: the outer product of `change` `(B, H, F)` and `key` `(B, H, E)`."""

    change: Tensor
    key: Tensor


def read(weights_HFE: Tensor, key_BHE: Tensor) -> Tensor:
    """What the matrices of all heads answer `(B, H, F)`."""
    return (weights_HFE @ key_BHE[..., None]).squeeze(-1)


def delta_rule(weights_HFE: Tensor, key_BHE: Tensor, value_BHF: Tensor, rate_BHF: Tensor) -> Write:
    """Move the answer to a key towards a value, all the way at a rate of 1 where the key has length 1."""
    return Write(rate_BHF * (value_BHF - read(weights_HFE, key_BHE)), key_BHE)


def written(weights_HFE: Tensor, write: Write) -> Tensor:
    """The matrices after the write of a row without alternatives."""
    return weights_HFE + write.change[0, ..., None] * write.key[0, ..., None, :]


class FastLayer(nn.Module):
    """A layer whose matrices, one of each head, are rewritten by what it reads.

    Args:
        width: D, a multiple of the heads.
        heads: H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"width={width} must be a multiple of heads={heads}.")
        self.heads, self.size = heads, width // heads
        self.norm, self.out = LayerNorm(width), nn.Linear(width, width, bias=False)

    def start(self, like: Tensor) -> Tensor:
        """The matrices before the first row; `like` is any tensor with the device and type of rows."""
        raise NotImplementedError

    def forward(self, x_BD: Tensor, weights_HFE: Tensor) -> tuple[Tensor, Write]:
        """Outputs `(B, D)`, and what each row writes."""
        raise NotImplementedError


class DeltaLayer(FastLayer):
    """A slow linear map says of each row what is written under which key, how fast, and what is asked for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.slow = nn.Linear(width, 3 * width + heads, bias=False)

    def start(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.heads, self.size, self.size)

    def forward(self, x_BD: Tensor, weights_HFE: Tensor) -> tuple[Tensor, Write]:
        said_BHS = self.slow(self.norm(x_BD)).unflatten(-1, (self.heads, -1))
        query_BHE, key_BHE, value_BHF, rate_BH1 = said_BHS.split([self.size] * 3 + [1], dim=-1)
        query_BHE, key_BHE = shares(query_BHE), shares(key_BHE)
        write = delta_rule(weights_HFE, key_BHE, value_BHF, rate_BH1.sigmoid())
        # A row reads what it has written itself, too.
        own_BHF = write.change * (key_BHE * query_BHE).sum(-1, keepdim=True)
        answer_BHF = read(weights_HFE, query_BHE) + own_BHF
        return x_BD + self.out(answer_BHF.flatten(-2)), write


class SelfReferentialLayer(FastLayer):
    """The matrix itself says of each row what is asked of it and what of it changes, all of its parts alike.

    Its rows make, in this order, the output, a query, a key, and four rates: those at which the rows of the output, of
    the query, of the key and of the rates change. Under the key is written what the matrix answers to the query.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.parts = [self.size] * 3 + [4]
        self.weights = nn.Parameter(torch.randn(heads, sum(self.parts), self.size) / self.size**0.5)

    def start(self, like: Tensor) -> Tensor:
        return self.weights

    def forward(self, x_BD: Tensor, weights_HFE: Tensor) -> tuple[Tensor, Write]:
        said_BHF = read(weights_HFE, x_BD.unflatten(-1, (self.heads, -1)))
        answer_BHE, query_BHE, key_BHE, rates_BH4 = said_BHF.split(self.parts, dim=-1)
        rates = zip(rates_BH4.sigmoid().split(1, dim=-1), self.parts, strict=True)
        rate_BHF = torch.cat([rate_BH1.expand(*rate_BH1.shape[:-1], rows) for rate_BH1, rows in rates], dim=-1)
        value_BHF = read(weights_HFE, query_BHE.softmax(-1))
        write = delta_rule(weights_HFE, key_BHE.softmax(-1), value_BHF, rate_BHF)
        return self.norm(x_BD) + self.out(answer_BHE.flatten(-2)), write


class FastWeights(nn.Module):
    """Layers of fast weights, each with a perceptron after it.

    Args:
        layers: the former.
        width: D of all of them.
        factor: by which the hidden units of a perceptron are more than D.
    """

    def __init__(self, layers: Iterable[FastLayer], width: int, factor: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.perceptrons = nn.ModuleList(
            nn.Sequential(
                LayerNorm(width), nn.Linear(width, factor * width), nn.ReLU(), nn.Linear(factor * width, width)
            )
            for _ in self.layers
        )

    def start(self, like: Tensor) -> list[Tensor]:
        """The matrices of each layer before the first row."""
        return [layer.start(like) for layer in cast(Iterable[FastLayer], self.layers)]

    def forward(self, x_BD: Tensor, memory: list[Tensor]) -> tuple[Tensor, list[Write]]:
        """Outputs `(B, D)`, and what each row writes in each layer."""
        writes = []
        for layer, perceptron, weights in zip(self.layers, self.perceptrons, memory, strict=True):
            x_BD, write = layer(x_BD, weights)
            x_BD = x_BD + perceptron(x_BD)
            writes.append(write)
        return x_BD, writes

    def written(self, memory: list[Tensor], writes: list[Write]) -> list[Tensor]:
        """The matrices after the writes of a row without alternatives."""
        return [written(weights, write) for weights, write in zip(memory, writes, strict=True)]


def shares(x: Tensor) -> Tensor:
    """Positive numbers that sum to 1."""
    positive = F.elu(x) + 1
    return positive / positive.sum(-1, keepdim=True)
