"""Attentive Neural Processes: every query point attends to the support points that matter to it.

Kim, Mnih, Schwarz, Garnelo, Eslami, Rosenbaum, Vinyals, Teh: "Attentive Neural Processes" (2019), arXiv:1901.05761.

Deviations: those of `NeuralProcess`, whose code of the support set the attention is in place of. Support points do not
attend to each other; the paper has both forms, with and without this self-attention. Heads share the width among them.
"""

from typing import Any, NamedTuple

from torch import Tensor

from lightning_meta.algorithms.processes.cnp import dense, perceptron
from lightning_meta.algorithms.processes.neural_process import NeuralProcess
from lightning_meta.core import Batch
from lightning_meta.core.transformer import attend
from lightning_meta.errors import ConfigError


class Memory(NamedTuple):
    """Keys and values `(S, D)` of the support points, and which of them are read `(S,)`."""

    keys: Tensor
    values: Tensor
    kept: Tensor


class AttentiveNeuralProcess(NeuralProcess):
    """A Neural Process that gives each query point a code of the support set of its own, by attention.

    Shapes: as in `NeuralProcess`.

    Args:
        heads: of the attention; the width is a multiple of them.
        x_size, width: of `ConditionalNeuralProcess`.
        **kwargs: of `NeuralProcess`.
    """

    def __init__(self, heads: int = 8, x_size: int = 1, width: int = 128, **kwargs: Any) -> None:
        super().__init__(x_size=x_size, width=width, **kwargs)
        if heads < 1 or width % heads:
            raise ConfigError(f"width={width} must be a multiple of heads={heads}.")
        self.heads = heads
        self.place_encoder = perceptron(x_size, width, 1, width)
        self.to_query, self.to_key, self.to_value, self.to_code = (dense(width, width, bias=False) for _ in "qkvo")

    def represent(self, support: Batch, kept_S: Tensor) -> Memory:
        values_SD = self.to_value(self.encoder(self.columns(support)))
        return Memory(self.to_key(self.place_encoder(support.x)), values_SD, kept_S)

    def decoder_inputs(self, memory: Memory, x_QX: Tensor) -> tuple[Tensor, Tensor]:
        queries_QD, seen_1S = self.to_query(self.place_encoder(x_QX)), memory.kept[..., None, :]
        return x_QX, self.to_code(attend(queries_QD, memory.keys, memory.values, seen_1S, self.heads))
