"""Base of classifiers that read labelled examples one after another, and queries as what could come next."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.modules.embedding import EmbeddingModule
from lightning_meta.modules.fixed_way import FixedWayModule
from lightning_meta.modules.stream import StreamModule, class_after_class


class Reader(Protocol):
    """A network that reads a stream of rows. Of the next row there may be alternatives, `(B, D)`."""

    def start(self, like: Tensor) -> Any:
        """The memory before the first row; `like` is any tensor with the device and type of rows."""

    def __call__(self, x_BD: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Outputs `(B, D)`, and what each row writes."""

    def written(self, memory: Any, write: Any) -> Any:
        """The memory after the write of a row without alternatives."""


class StreamClassifierModule(EmbeddingModule[Any], StreamModule, FixedWayModule):
    """An example comes with its label, as in the synchronous setting of Irie et al. (2022), arXiv:2202.05780.

    A query comes without, and each is the next row of the stream, alone. Only queries are judged. A subclass makes the
    `reader`.

    Args:
        backbone: of the embedding.
        n_way: classes per episode. On the command line it follows `data.n_way`.
        width: D, of the rows that are read and of the outputs.
        classes_in_turn: classes come one after another, each with all its examples, so that the first must be
            remembered while the last is learned: continual learning by reading. Otherwise the order is random.
        **kwargs: of `EmbeddingModule`.
    """

    reader: Reader

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        width: int = 256,
        classes_in_turn: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.n_way, self.classes_in_turn = self.required_way(n_way), classes_in_turn
        self.project = nn.Linear(self.backbone.out_features + self.n_way, width)
        self.classifier = nn.Linear(width, self.n_way)

    def adapt_head(self, support: Batch) -> Any:
        if self.classes_in_turn:
            support = class_after_class(support)
        labels_SN = F.one_hot(support.y, self.n_way).to(support.x.dtype)
        rows_SD = self.project(torch.cat([support.x, labels_SN], dim=1))
        memory = self.reader.start(rows_SD)
        for t in range(len(rows_SD)):
            _, write = self.reader(rows_SD[t : t + 1], memory)
            memory = self.reader.written(memory, write)
        return memory

    def head_loss(self, memory: Any, query: Batch) -> TaskOutput:
        outputs_QD, _ = self.reader(self.project(F.pad(query.x, (0, self.n_way))), memory)
        logits_QN = self.classifier(outputs_QD)
        return TaskOutput(F.cross_entropy(logits_QN, query.y), logits_QN)
