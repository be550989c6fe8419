"""Prototypes of tags: each word has the tag whose mean word feature in the support set is nearest.

Snell, Swersky, Zemel: "Prototypical Networks for Few-shot Learning" (2017), arXiv:1703.05175, on the words of sentences
in place of images, as in Fritzler, Logacheva, Kretov: "Few-shot Classification in Named Entity Recognition Task"
(2019), arXiv:1812.06158.

Deviations from the second: words outside of all entities have a prototype like the others, where the paper learns a
score for them; tags are not decoded together by a conditional random field.
"""

from typing import Any

from torch.nn import functional as F

from lightning_meta.algorithms.compare.protonet import ProtoNet, Prototypes
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.core.prototypes import class_means
from lightning_meta.core.tags import NO_WORD
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMetric, EpisodicSpanF1
from lightning_meta.modules import FixedWayModule


class TokenProtoNet(ProtoNet, FixedWayModule):
    """`ProtoNet` whose examples are the words of sentences: logits `(Q, L, C)` of C tags.

    Padding is in no mean. A query word whose tag no word of the support set has is not in the loss, but it is in the
    metric, where it counts as wrong.

    Args:
        backbone: from sentences `(B, L, ...)` to features of words `(B, L, D)`, such as `WordWindows`.
        n_way: C. On the command line it follows `data.n_way`.
        metric: Default: F1 of spans.
        **kwargs: of `ProtoNet`.
    """

    def __init__(
        self, backbone: Backbone, n_way: int | None = None, metric: EpisodicMetric | None = None, **kwargs: Any
    ) -> None:
        super().__init__(backbone, metric=metric or EpisodicSpanF1(), **kwargs)
        self.n_way = self.required_way(n_way)

    def adapt_head(self, support: Batch) -> Prototypes:
        return Prototypes(*class_means(support.x.flatten(0, 1), support.y.flatten(), self.n_way))

    def head_loss(self, prototypes: Prototypes, query: Batch) -> TaskOutput:
        words = Batch(query.x.flatten(0, 1), query.y.flatten())
        logits_WC = self.logits(prototypes, words.x)
        known_W = prototypes.present[words.y.clamp_min(0)]
        loss = F.cross_entropy(logits_WC, words.y.where(known_W, NO_WORD), ignore_index=NO_WORD)
        return TaskOutput(loss, logits_WC.unflatten(0, query.y.shape))

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        query = datamodule.dataset(split)[0].query
        if query.y.is_floating_point() or query.y.shape != query.x.shape[:2]:
            raise ConfigError(
                f"{type(self).__name__} tags the words of sentences, but inputs of {datamodule.name} are "
                f"{tuple(query.x.shape[1:])} and their targets {tuple(query.y.shape[1:])}; take TaggedSentences or "
                "MadeUpEntities."
            )
        super().check_input(datamodule, split)
