"""A Transformer in parts that read and parts that are read, right under double backward and under `torch.vmap`.

Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin: "Attention Is All You Need" (2017),
arXiv:1706.03762, with normalisation before each part (Xiong et al.: "On Layer Normalization in the Transformer
Architecture" (2020), arXiv:2002.04745).

Attention is in plain operations, because fused kernels have no second derivative; scale and shift of the normalisation
stand outside of it, because inside they have a wrong one under vmap. Where a row stands in a sequence is not told: who
needs it adds it to the input.

Shape letters: `Q` rows that read, `S` rows that are read, `L` rows of a sequence, `D` features, `H` heads, `E` = D / H.
Axes before them are batches.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.errors import ConfigError

Memory = tuple[Tensor, Tensor]  # keys and values `(S, D)` of the rows that one layer reads


def attend(queries_QD: Tensor, keys_SD: Tensor, values_SD: Tensor, seen_QS: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of each head on its share of the features, side by side `(Q, D)`.

    A row does not read where `seen` is 0 and must read somewhere; `(1, S)` is the same for all of them.
    """
    queries_HQE, keys_HSE, values_HSE = (
        features.unflatten(-1, (heads, -1)).transpose(-3, -2) for features in (queries_QD, keys_SD, values_SD)
    )
    scores_HQS = queries_HQE @ keys_HSE.mT / keys_HSE.shape[-1] ** 0.5
    attention_HQS = torch.where(seen_QS.unsqueeze(-3) > 0, scores_HQS, -torch.inf).softmax(-1)
    return (attention_HQS @ values_HSE).transpose(-3, -2).flatten(-2)


class LayerNorm(nn.Module):
    """Each row with mean 0 and variance 1, then scaled and shifted by learned numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)


class Layer(nn.Module):
    """Attention, then a perceptron, each added to its input. `memory` of rows once, then whoever reads them.

    Args:
        width: D.
        heads: of the attention; the width is a multiple of them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"width={width} must be a multiple of heads={heads}.")
        self.heads, self.norm_1, self.norm_2 = heads, LayerNorm(width), LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def memory(self, x_SD: Tensor) -> Memory:
        """What is read of rows."""
        keys_SD, values_SD = self.key_value(self.norm_1(x_SD)).chunk(2, dim=-1)
        return keys_SD, values_SD

    def forward(self, x_QD: Tensor, memory: Memory, seen_QS: Tensor) -> Tensor:
        x_QD = x_QD + self.out(attend(self.query(self.norm_1(x_QD)), *memory, seen_QS, self.heads))
        return x_QD + self.perceptron(self.norm_2(x_QD))


class CausalTransformer(nn.Module):
    """Rows of a sequence, each of which reads itself and those before it.

    What was read stays in `memories`, so a sequence that grows is never read twice.

    Args:
        width: D, of the input and of the output.
        layers: of attention and perceptron.
        heads: of `Layer`.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width)

    def forward(self, x_LD: Tensor, memories: list[Memory] | None = None) -> tuple[Tensor, list[Memory]]:
        """Rows that follow those of `memories` (None: there are none); and the memories of all."""
        grown: list[Memory] = []
        for place, layer in enumerate(cast(Iterable[Layer], self.layers)):
            memory = layer.memory(x_LD)
            if memories is not None:
                keys, values = (torch.cat(parts, dim=-2) for parts in zip(memories[place], memory, strict=True))
                memory = keys, values
            grown.append(memory)
            rows, read = x_LD.shape[-2], memory[0].shape[-2]
            x_LD = layer(x_LD, memory, x_LD.new_ones(rows, read).tril(read - rows))
        return self.norm(x_LD), grown
