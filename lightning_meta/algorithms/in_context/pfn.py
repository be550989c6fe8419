"""Prior-Data Fitted Networks: a Transformer that has seen many functions of a prior predicts as its posterior says.

Müller, Hollmann, Pineda Arango, Grabocka, Hutter: "Transformers Can Do Bayesian Inference" (2021), arXiv:2112.10510.

Deviations: predictions are normal distributions, which suit the Gaussian processes played here; the paper's are
histograms. Points are encoded, and predictions decoded, by perceptrons as in neural processes; the paper's are linear.
A query does not read itself, as in the authors' later code; what is lost by it, that the number of points can be told
(attention alone sees their distribution, the same for ten points as for ten pairs of twins), a learned row brings back,
which stands among the points and is always read. How many of the support points training reads is drawn for
each task, all numbers equally likely.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.processes.cnp import ConditionalNeuralProcess, perceptron
from lightning_meta.core import Batch
from lightning_meta.core.transformer import Layer, LayerNorm, Memory


class Context(NamedTuple):
    """What each layer reads of the learned row and the support points, and which of them are read `(1 + S,)`."""

    memories: list[Memory]
    kept: Tensor


class PFN(ConditionalNeuralProcess):
    """A Conditional Neural Process in which support points read each other and queries read them, layer by layer.

    The support set is read once; queries do not see one another, so each may be asked alone.

    Shapes: as in `ConditionalNeuralProcess`, and `R` = 1 + S rows that are read.

    Args:
        depth: layers of the Transformer.
        heads: of its attention; the width is a multiple of them.
        x_size, width, layers: of `ConditionalNeuralProcess`; `layers` are those of encoders and decoder.
        **kwargs: of `ConditionalNeuralProcess`.
    """

    def __init__(
        self, depth: int = 4, heads: int = 4, x_size: int = 1, width: int = 64, layers: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(x_size=x_size, width=width, layers=layers, **kwargs)
        self.place_encoder = perceptron(x_size, width, layers, width)
        self.prior = nn.Parameter(torch.randn(1, width))  # the row that there is before any point
        self.transformer = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = LayerNorm(width)

    def represent(self, support: Batch, kept_S: Tensor) -> Context:
        points_SD, memories = self.encoder(self.columns(support)), []
        x_RD = torch.cat([self.prior.expand(*points_SD.shape[:-2], 1, -1), points_SD], dim=-2)
        kept_R = F.pad(kept_S, (1, 0), value=1.0)
        for layer in cast(Iterable[Layer], self.transformer):
            memories.append(layer.memory(x_RD))
            x_RD = layer(x_RD, memories[-1], kept_R.unsqueeze(-2))
        return Context(memories, kept_R)

    def decoder_inputs(self, context: Context, x_QX: Tensor) -> tuple[Tensor, Tensor]:
        x_QD = self.place_encoder(x_QX)
        for layer, memory in zip(cast(Iterable[Layer], self.transformer), context.memories, strict=True):
            x_QD = layer(x_QD, memory, context.kept.unsqueeze(-2))
        return x_QX, self.norm(x_QD)
