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

from lightning_meta.algorithms.processes.cnp import keep_some
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.transformer import Layer, Memory
from lightning_meta.modules import TabularModule
from lightning_meta.modules.tabular import Scaling, scaling_of

LEAST = 1e-9  # probability of a class that there is


class Table(NamedTuple):
    """What is read of a support set: by each layer, and at the end by keys `(S, D)` and classes `(S, C)`."""

    scaling: Scaling
    memories: list[Memory]
    keys: Tensor
    classes: Tensor
    kept: Tensor


class TabPFN(TabularModule[Table]):
    """Rows of the support read each other, in turn those of their class and all; queries read them, not each other.

    Shapes of one task: `S` support rows, `Q` query rows, `F` columns, `D` the width, `C` = S slots for classes; empty
    ones have probability zero. A query whose class the support set lacks has no part in the loss, and is wrong in
    accuracy.

    Args:
        width: of rows.
        **kwargs: of `TabularModule`.
    """

    def __init__(self, width: int = 64, **kwargs: Any) -> None:
        super().__init__(width=width, **kwargs)
        self.to_key = nn.Linear(width, width)

    def adapt(self, support: Batch) -> Table:
        x_SF = self.rows(support.x, support.y.dim())
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
        x_QD = self.embedded(self.rows(query.x, query.y.dim()), table.scaling)
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
