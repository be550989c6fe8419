"""TabPFN: a Transformer that was trained on made-up tables classifies the rows of a real one by reading it once.

Hollmann, Müller, Eggensperger, Hutter: "TabPFN: A Transformer That Solves Small Tabular Classification Problems in a
Second" (2022), arXiv:2207.01848.

Deviations: classes are read out by attention, in place of a linear layer with ten outputs, and labels enter by who may
read whom, in place of an embedding of their numbers: in every other layer a row reads those of its own class only. So
names of classes mean nothing and there may be any number of them. Queries are compared with rows as these are with
themselves: a network that is not trained yet prefers the nearest ones. The size is a small one.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.processes.cnp import keep_some
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.transformer import Layer, LayerNorm, Memory
from lightning_meta.errors import ConfigError
from lightning_meta.modules import BatchedModule

LARGEST = 10.0  # of a standardised number: farther ones are cut off
LEAST = 1e-9  # probability of a class that there is


class Scaling(NamedTuple):
    """Mean and standard deviation `(1, F)` of the columns, and the factor `(1, 1)` by how many of them vary."""

    mean: Tensor
    std: Tensor
    factor: Tensor


class Table(NamedTuple):
    """What is read of a support set: by each layer, and at the end by keys `(S, D)` and classes `(S, C)`."""

    scaling: Scaling
    memories: list[Memory]
    keys: Tensor
    classes: Tensor
    kept: Tensor


class TabPFN(BatchedModule[Table]):
    """Rows of the support read each other, in turn those of their class and all; queries read them, not each other.

    Shapes of one task: `S` support rows, `Q` query rows, `F` columns, `D` the width, `C` = S slots for classes; empty
    ones have probability zero. Columns are standardised by the support set alone. A gap (NaN) is its column's mean; a
    column that is constant in the support set is left out. A query whose class the support set lacks has no part in
    the loss, and is wrong in accuracy.

    Args:
        features: the most columns of a table.
        width: of rows.
        depth: layers of the Transformer.
        heads: of its attention; the width is a multiple of them.
        **kwargs: of `BatchedModule`.
    """

    def __init__(self, features: int = 30, width: int = 64, depth: int = 4, heads: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features
        self.embed = nn.Linear(features, width)
        self.transformer = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm, self.to_key = LayerNorm(width), nn.Linear(width, width)

    def adapt(self, support: Batch) -> Table:
        x_SF = self.rows(support.x, support.y)
        kept_S = keep_some(x_SF.nan_to_num()) if self.training else torch.ones_like(x_SF[..., 0])
        scaling, memories = scaling_of(x_SF, kept_S), []
        same_SS = (support.y[..., :, None] == support.y[..., None, :]) * kept_S.unsqueeze(-2)
        alone_SS = torch.eye(kept_S.shape[-1], device=kept_S.device) * (1 - kept_S).unsqueeze(-2)
        own_SS, all_SS = same_SS + alone_SS, kept_S.unsqueeze(-2) + alone_SS  # a row that is not kept reads itself
        x_SD = self.embedded(x_SF, scaling)
        for place, layer in enumerate(cast(Iterable[Layer], self.transformer)):
            memories.append(layer.memory(x_SD))
            x_SD = layer(x_SD, memories[-1], all_SS if place % 2 else own_SS)
        slots_C = torch.arange(kept_S.shape[-1], device=kept_S.device)
        classes_SC = (support.y[..., None] == slots_C) * kept_S.unsqueeze(-1)
        return Table(scaling, memories, self.to_key(self.norm(x_SD)), classes_SC, kept_S)

    def query_loss(self, table: Table, query: Batch) -> TaskOutput:
        seen_1S = table.kept.unsqueeze(-2)
        x_QD = self.embedded(self.rows(query.x, query.y), table.scaling)
        for layer, memory in zip(cast(Iterable[Layer], self.transformer), table.memories, strict=True):
            x_QD = layer(x_QD, memory, seen_1S)
        scores_QS = self.to_key(self.norm(x_QD)) @ table.keys.mT / table.keys.shape[-1] ** 0.5
        attention_QS = torch.where(seen_1S > 0, scores_QS, -torch.inf).softmax(-1)
        there_1C = table.classes.sum(-2, keepdim=True) > 0
        share_QC = (attention_QS @ table.classes).clamp_min(LEAST)
        logits_QC = torch.where(there_1C, share_QC.log(), -torch.inf)
        known_Q = there_1C.expand_as(logits_QC).gather(-1, query.y.unsqueeze(-1)).squeeze(-1)
        said_Q = logits_QC.gather(-1, query.y.unsqueeze(-1)).squeeze(-1)
        loss = -torch.where(known_Q, said_Q, 0).sum(-1) / known_Q.sum(-1).clamp_min(1)
        return TaskOutput(loss, logits_QC)

    def rows(self, x: Tensor, y: Tensor) -> Tensor:
        """Inputs as rows of numbers `(S, F)`; an image is a row of pixels."""
        x_SF = x.flatten(y.dim())
        if x_SF.shape[-1] > self.features:
            raise ConfigError(
                f"{type(self).__name__} has features={self.features}, but a row has {x_SF.shape[-1]} numbers; select "
                "columns or train with more."
            )
        return x_SF

    def embedded(self, x_SF: Tensor, scaling: Scaling) -> Tensor:
        mean, std, factor = scaling
        there = std > 0
        scaled_SF = torch.where(there, (x_SF - mean) / torch.where(there, std, 1), 0).nan_to_num(0)
        # As if all columns were there: smaller rows would drown in what the layers add to them.
        scaled_SF = scaled_SF.clamp(-LARGEST, LARGEST) * (factor * self.features**0.5)
        return self.embed(F.pad(scaled_SF, (0, self.features - x_SF.shape[-1])))


def scaling_of(x_SF: Tensor, kept_S: Tensor) -> Scaling:
    """Of the rows that are kept, without gaps. Rounding does not make a constant column vary."""
    there_SF = ~x_SF.isnan() * kept_S.unsqueeze(-1)
    x_SF = x_SF.nan_to_num()
    count_1F = there_SF.sum(-2, keepdim=True).clamp_min(1)
    mean = (x_SF * there_SF).sum(-2, keepdim=True) / count_1F
    std = (((x_SF - mean).square() * there_SF).sum(-2, keepdim=True) / count_1F).sqrt()
    std = torch.where(std > 1e-6 * mean.abs(), std, 0)
    vary = (std > 0).sum(-1, keepdim=True).clamp_min(1).to(x_SF)
    return Scaling(mean, std, vary.rsqrt())
