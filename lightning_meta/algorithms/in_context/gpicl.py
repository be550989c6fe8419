"""GPICL: a causal Transformer trained on one data set under many projections learns to learn from any stream.

Kirsch, Harrison, Sohl-Dickstein, Metz: "General-Purpose In-Context Learning by Meta-Learning Transformers" (2022),
arXiv:2212.04458.

Trained on few tasks it memorises them, on many it has to learn from what it reads (see `ProjectedImages`).

Deviations: a row of the sequence has the example before it whole, with its label, beside the input that is asked about;
in the paper it has that label alone, and the network must first learn to look one row back. With it the order of the
examples need not be told. The size is a small one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.transformer import CausalTransformer, Memory
from lightning_meta.errors import ConfigError
from lightning_meta.modules import BatchedModule, FixedWayModule, StreamModule


class Reading(NamedTuple):
    """What each layer has read, the last example with its label, and of each example the logits before its label."""

    memories: list[Memory]
    last: Tensor
    logits: Tensor
    labels: Tensor


class GPICL(BatchedModule[Reading], StreamModule[Reading], FixedWayModule[Reading]):
    """Read a stream of examples, each with the one before it and its label; a query is the next of them, alone.

    The loss is the mean over all predictions, those within the support set too.

    Shapes of one task: `S` support examples, `Q` queries, `F` numbers of an input, `N` classes, `D` the width.

    Args:
        inputs: F; an image is a row of pixels.
        n_way: classes of a task. On the command line it follows `data.n_way`.
        width: of rows.
        depth: layers of the Transformer.
        heads: of its attention; the width is a multiple of them.
        **kwargs: of `BatchedModule`.
    """

    def __init__(
        self,
        inputs: int,
        n_way: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inputs, self.n_way = inputs, self.required_way(n_way)
        self.embed = nn.Linear(2 * inputs + self.n_way, width)
        self.transformer = CausalTransformer(width, depth, heads)
        self.classifier = nn.Linear(width, self.n_way)

    def adapt(self, support: Batch) -> Reading:
        x_SF = self.numbers(support)
        labels_SN = F.one_hot(support.y, self.n_way).to(x_SF.dtype)
        told_SG = torch.cat([x_SF, labels_SN], -1)
        before_SG = F.pad(told_SG, (0, 0, 1, 0))[..., :-1, :]  # nothing is before the first
        rows_SD, memories = self.transformer(self.embed(torch.cat([x_SF, before_SG], -1)))
        return Reading(memories, told_SG[..., -1:, :], self.classifier(rows_SD), support.y)

    def query_loss(self, reading: Reading, query: Batch) -> TaskOutput:
        x_QF = self.numbers(query)
        asked_QD = self.embed(torch.cat([x_QF, reading.last.expand(*x_QF.shape[:-1], -1)], -1))
        # Each is a sequence of its own that goes on from the same memories.
        queries = x_QF.shape[-2]
        memories = [tuple(part.unsqueeze(-3).expand(*part.shape[:-2], queries, -1, -1) for part in memory)
                    for memory in reading.memories]  # fmt: skip
        rows_Q1D, _ = self.transformer(asked_QD.unsqueeze(-2), memories)
        logits_QN = self.classifier(rows_Q1D.squeeze(-2))
        logits_LN, labels_L = torch.cat([reading.logits, logits_QN], -2), torch.cat([reading.labels, query.y], -1)
        said_L = logits_LN.log_softmax(-1).gather(-1, labels_L.unsqueeze(-1)).squeeze(-1)
        return TaskOutput(-said_L.mean(-1), logits_QN)

    def numbers(self, batch: Batch) -> Tensor:
        """Inputs as rows of numbers `(S, F)`."""
        x_SF = batch.x.flatten(batch.y.dim())
        if x_SF.shape[-1] != self.inputs:
            raise ConfigError(
                f"an input has {x_SF.shape[-1]} numbers, but {type(self).__name__} has inputs={self.inputs}; set "
                f"model.inputs to {x_SF.shape[-1]}."
            )
        return x_SF
