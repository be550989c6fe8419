"""SNAIL: temporal convolutions gather a sequence of labelled examples, causal attention picks from it.

Mishra, Rohaninejad, Chen, Abbeel: "A Simple Neural Attentive Meta-Learner" (2018), arXiv:1707.03141.

The sequence is the support set, each example with its label, and one query example without.

Deviations: dilations are 1, 2, 4, ...; the paper's pseudo-code begins with 2, which would skip every second example.
Where the protocol is transductive, support and query set are each normalised by their own statistics. All query
examples of an episode share its support set.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule, FixedWayModule, StreamModule


class SNAIL(EmbeddingModule[Tensor], StreamModule, FixedWayModule):
    """Classify a query example as the last element of a sequence that begins with the support set.

    Shape letters: `L` elements of a sequence, `C` their channels; the rest as in `core/episode.py`.

    Args:
        backbone: of the embedding; a linear map to `embedding` features is added.
        n_way: classes per episode. On the command line it follows `data.n_way`.
        k_shot: support examples per class for which temporal convolutions reach back to the first one; sets how many
            there are. Episodes may have more or fewer. On the command line it follows `data.k_shot`.
        embedding: features of an image.
        filters: of each temporal convolution.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        k_shot: int | None = None,
        embedding: int = 64,
        filters: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        n_way = self.n_way = self.required_way(n_way)
        if k_shot is None:
            raise ConfigError("SNAIL needs k_shot: with n_way it is the length of its sequences.")
        self.project = nn.Linear(self.backbone.out_features, embedding)
        convolutions = temporal_convolutions(n_way * k_shot, filters)
        self.blocks, channels = stacked(embedding + n_way, [
            partial(Attention, keys=64, values=32),
            *convolutions,
            partial(Attention, keys=256, values=128),
            *convolutions,
            partial(Attention, keys=512, values=256),
        ])  # fmt: skip
        self.classifier = nn.Linear(channels, n_way)

    def adapt_head(self, support: Batch) -> Tensor:
        """The sequence up to the query example `(S, D + N)`."""
        features_SD = self.project(support.x)
        return torch.cat([features_SD, F.one_hot(support.y, self.n_way).to(features_SD.dtype)], dim=1)

    def head_loss(self, sequence_SC: Tensor, query: Batch) -> TaskOutput:
        # A query's label is not known.
        x_LC = torch.cat([sequence_SC, F.pad(self.project(query.x), (0, self.n_way))])
        n_past = len(sequence_SC)
        for block in self.blocks:
            x_LC = block(x_LC, n_past)
        logits_QN = self.classifier(x_LC[n_past:])
        return TaskOutput(F.cross_entropy(logits_QN, query.y), logits_QN)


class CausalBlock(nn.Module):
    """Appends to the channels of each element what it gathers from this element and earlier ones.

    `x_LC` holds a sequence of `n_past` elements and then alternatives for its next element, which do not see each
    other. What is causal can be computed once for all of them.
    """

    out_channels: int

    def forward(self, x_LC: Tensor, n_past: int) -> Tensor:
        raise NotImplementedError


class Attention(CausalBlock):
    """Attention with one head: appends `values` channels."""

    def __init__(self, channels: int, keys: int, values: int) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(channels, keys), nn.Linear(channels, keys)
        self.values = nn.Linear(channels, values)
        self.out_channels = channels + values

    def forward(self, x_LC: Tensor, n_past: int) -> Tensor:
        queries_LK, keys_LK = self.queries(x_LC), self.keys(x_LC)
        place_L = torch.arange(len(x_LC), device=x_LC.device)
        seen_LL = (place_L < place_L.clamp_max(n_past)[:, None]) | (place_L == place_L[:, None])
        scores_LL = (queries_LK @ keys_LK.T / keys_LK.shape[1] ** 0.5).masked_fill(~seen_LL, -torch.inf)
        return torch.cat([x_LC, scores_LL.softmax(1) @ self.values(x_LC)], dim=1)


class Dense(CausalBlock):
    """Gated convolution of an element and the one `dilation` before: appends `filters` channels."""

    def __init__(self, channels: int, dilation: int, filters: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.now, self.before = nn.Linear(channels, 2 * filters), nn.Linear(channels, 2 * filters, bias=False)
        self.out_channels = channels + filters

    def forward(self, x_LC: Tensor, n_past: int) -> Tensor:
        before_LC = F.pad(x_LC[:n_past], (0, 0, self.dilation, 0))[: n_past + 1]
        next_LC = before_LC[n_past:].expand(len(x_LC) - n_past, -1)
        value, gate = (self.now(x_LC) + self.before(torch.cat([before_LC[:n_past], next_LC]))).chunk(2, dim=1)
        return torch.cat([x_LC, value.tanh() * gate.sigmoid()], dim=1)


MakeBlock = Callable[[int], CausalBlock]


def temporal_convolutions(past: int, filters: int) -> list[MakeBlock]:
    """With dilations 1, 2, 4, ... until an element sees the one that so many came after."""
    return [partial(Dense, dilation=2**i, filters=filters) for i in range(past.bit_length())]


def stacked(channels: int, makers: Sequence[MakeBlock]) -> tuple[nn.ModuleList, int]:
    """Blocks one after another, made from their numbers of channels; and how many channels there are in the end."""
    blocks: list[CausalBlock] = []
    for make in makers:
        blocks.append(make(channels))
        channels = blocks[-1].out_channels
    return nn.ModuleList(blocks), channels
