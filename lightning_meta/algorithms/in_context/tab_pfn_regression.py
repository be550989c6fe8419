"""TabPFN for numbers: rows of a real table are predicted by a Transformer that was trained on made-up ones.

Hollmann, Müller, Purucker, Krishnakumar, Körfer, Hoo, Schirrmeister, Hutter: "Accurate predictions on small data with a
tabular foundation model" (2025), doi:10.1038/s41586-024-08328-6: regression beside the classification of `tab_pfn.py`.
A prediction is a distribution in bars, see `Bars`.

Deviations: a row is one vector, there is no attention between columns; the borders of bars are those of a wide normal
distribution, not quantiles of the prior; the size is a small one.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.processes.cnp import keep_some
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.gaussian import Gaussian
from lightning_meta.core.histogram import Bars
from lightning_meta.core.transformer import Layer, Memory
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import TabularModule
from lightning_meta.modules.tabular import Scaling, scaling_of


class NumberTable(NamedTuple):
    """What is read of a support set: scales of columns and targets, and of each layer the memories of rows."""

    scaling: Scaling
    target: Gaussian
    memories: list[Memory]
    kept: Tensor


class TabPFNRegression(TabularModule[NumberTable]):
    """Rows of the support, with their targets, read each other; queries read them, not each other.

    Shapes of one task: `S` support rows, `Q` query rows, `D` the width, `B` bars. Targets are `(Q, 1)`, of any scale:
    they are standardised by the support set. Predictions `(Q, 1)` are the means of distributions; the loss is minus
    the mean log-density, in nats.

    Args:
        width: of rows.
        bars: B.
        **kwargs: of `TabularModule`.
    """

    def __init__(self, width: int = 64, bars: int = 64, **kwargs: Any) -> None:
        super().__init__(width=width, metric=EpisodicMSE(), **kwargs)
        if bars < 4:
            raise ConfigError(f"bars={bars}, but a distribution needs 4 of them, of which two are its tails.")
        self.bars = Bars(bars)
        self.of_target, self.to_bars = nn.Linear(1, width), nn.Linear(width, bars)

    def adapt(self, support: Batch) -> NumberTable:
        x_SF = self.rows(support.x, support.y.dim() - 1)
        kept_S = keep_some(x_SF.nan_to_num()) if self.training else torch.ones_like(x_SF[..., 0])
        scaling, target = scaling_of(x_SF, kept_S), scale_of(support.y, kept_S)
        alone_SS = torch.eye(kept_S.shape[-1], device=kept_S.device) * (1 - kept_S).unsqueeze(-2)
        seen_SS = kept_S.unsqueeze(-2) + alone_SS  # a row that is not kept reads itself
        x_SD = self.embedded(x_SF, scaling) + self.of_target((support.y - target.mean) / target.std)
        memories = []
        for layer in cast(Iterable[Layer], self.transformer):
            memories.append(layer.memory(x_SD))
            x_SD = layer(x_SD, memories[-1], seen_SS)
        return NumberTable(scaling, target, memories, kept_S)

    def query_loss(self, table: NumberTable, query: Batch) -> TaskOutput:
        logits_QB, (mean, std) = self.logits(table, query.x, query.y.dim() - 1), table.target
        scaled_Q = ((query.y - mean) / std)[..., 0]
        loss = std[..., 0, 0].log() - self.bars.log_density(logits_QB, scaled_Q).mean(-1)
        return TaskOutput(loss, self.moments(table, logits_QB).mean)

    def logits(self, table: NumberTable, x: Tensor, axes: int = 1) -> Tensor:
        """Of the bars `(Q, B)` of each row; `x` has so many axes up to that of rows."""
        x_QD, seen_1S = self.embedded(self.rows(x, axes), table.scaling), table.kept.unsqueeze(-2)
        for layer, memory in zip(cast(Iterable[Layer], self.transformer), table.memories, strict=True):
            x_QD = layer(x_QD, memory, seen_1S)
        return self.to_bars(self.norm(x_QD))

    def moments(self, table: NumberTable, logits_QB: Tensor) -> Gaussian:
        """Mean and standard deviation `(Q, 1)` of each row's target, on the scale of the targets."""
        (mean, std), (scaled_Q, spread_Q) = table.target, self.bars.moments(logits_QB)
        return Gaussian(mean + std * scaled_Q.unsqueeze(-1), std * spread_Q.unsqueeze(-1))


def scale_of(y_S1: Tensor, kept_S: Tensor) -> Gaussian:
    """Mean and standard deviation `(1, 1)` of the targets that are kept; 1 where they do not vary."""
    mean, std, _ = scaling_of(y_S1, kept_S)
    return Gaussian(mean, torch.where(std > 0, std, 1))
