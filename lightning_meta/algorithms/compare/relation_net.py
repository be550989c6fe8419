"""Relation Networks: learn the comparison itself, a network that scores how well a query fits a class.

Sung, Yang, Zhang, Xiang, Torr, Hospedales: "Learning to Compare: Relation Network for Few-Shot Learning" (2018),
arXiv:1711.06025.

Deviations: all convolutions are padded, so that maps of 28x28 images are 7x7 and not 5x5 as in the authors' code, and
have no bias (normalisation cancels it). The relation module starts from the initial values of that code, the embedding
from those of its backbone. Gradients are clipped only if the trainer does it. That code normalises by the batch at hand
in testing too (`norm: transductive`); whose statistics are used here is a setting. The cross-entropy of scores is not
the paper's loss; Chen et al. (2019, arXiv:1904.04232) train with it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.backbones import Backbone, EpisodicBatchNorm2d, support_statistics
from lightning_meta.backbones.norm import NormProtocol
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule


class ClassMaps(NamedTuple):
    """For each support example the summed maps of its class `(S, D, H, W)` and its label `(S,)`.

    With them statistics for the query's normalisation in the relation module.
    """

    maps: Tensor
    labels: Tensor
    statistics: Params


class RelationNet(EmbeddingModule[ClassMaps]):
    """A convolutional network scores pairs of a query and a class by their feature maps, side by side in depth.

    The way is read from the episode, so it may differ between training and testing. Class slots are the support
    examples: each stands for its class. So in K-shot episodes every pair is there K times, which changes neither the
    mean loss nor batch statistics, and there are no pairs with absent classes, which would.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` if it has one (see
            `Conv4`), otherwise as maps of one pixel.
        hidden: filters of the relation module's two convolutions.
        hidden_linear: units between its two linear layers.
        norm: whose statistics normalise in the relation module, see `EpisodicBatchNorm2d`. For `inductive` they are
            those of all pairs of a support example and a class.
        loss: `mse` between the sigmoids of all scores and 1 for the own class, 0 for others (the paper's), or the
            `cross_entropy` of a query's scores, which learns faster where there are many classes.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden: int = 64,
        hidden_linear: int = 8,
        norm: NormProtocol = "transductive",
        loss: Literal["mse", "cross_entropy"] = "mse",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.loss = loss
        self.map_shape = getattr(self.backbone, "map_shape", (self.backbone.out_features, 1, 1))
        channels, *size = self.map_shape
        convolutions, pools = [], []
        for inputs in (2 * channels, hidden):
            convolutions.append(convolution(inputs, hidden, size))
            pool = [min(2, side) for side in size]  # a map of one pixel stays as it is
            pools.append(nn.MaxPool2d(tuple(pool)))
            size = [side // step for side, step in zip(size, pool, strict=True)]
        self.compare = convolutions[0]
        self.relation = nn.Sequential(
            EpisodicBatchNorm2d(hidden, norm),
            nn.ReLU(),
            pools[0],
            convolutions[1],
            EpisodicBatchNorm2d(hidden, norm),
            nn.ReLU(),
            pools[1],
            nn.Flatten(),
            nn.Linear(hidden * prod(size), hidden_linear),
            nn.ReLU(),
            nn.Linear(hidden_linear, 1),
        )
        for layer in self.relation:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.ones_(layer.bias)

    def pairs(self, maps_QDHW: Tensor, class_maps_SDHW: Tensor) -> Tensor:
        """The first convolution of all pairs' concatenated maps, `(Q * S, hidden, H, W)`.

        A convolution is linear, so it is applied to each map once, with its half of the weights, and pairs are sums.
        """
        for_class, for_query = self.compare.weight.chunk(2, dim=1)
        from_class = F.conv2d(class_maps_SDHW, for_class, padding="same")
        from_query = F.conv2d(maps_QDHW, for_query, padding="same")
        return (from_query[:, None] + from_class).flatten(0, 1)

    def adapt_head(self, support: Batch) -> ClassMaps:
        maps_SDHW = support.x.unflatten(1, self.map_shape)
        same_SS = (support.y[:, None] == support.y).to(maps_SDHW.dtype)
        class_maps_SDHW = (same_SS @ maps_SDHW.flatten(1)).view_as(maps_SDHW)
        statistics = support_statistics(self.relation, {}, self.pairs(maps_SDHW, class_maps_SDHW))
        return ClassMaps(class_maps_SDHW, support.y, statistics)

    def head_loss(self, classes: ClassMaps, query: Batch) -> TaskOutput:
        """Predictions are the scores before their sigmoid."""
        pairs = self.pairs(query.x.unflatten(1, self.map_shape), classes.maps)
        logits_QS = functional_call(self.relation, classes.statistics, (pairs,)).view(len(query.y), -1)
        logits_CQ, present_C = class_means(logits_QS.T, classes.labels)  # all examples of a class have the same
        logits_QC = exclude_absent(logits_CQ.T, present_C)
        if self.loss == "cross_entropy":
            return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
        same_QS = query.y[:, None] == classes.labels
        return TaskOutput(F.mse_loss(logits_QS.sigmoid(), same_QS.to(logits_QS.dtype)), logits_QC)

    def check_shots(self, shots: Sequence[int]) -> None:
        if min(shots) < max(shots):
            raise ConfigError(
                f"classes have from {min(shots)} to {max(shots)} examples, but RelationNet adds up the maps of a "
                "class, so that classes can be compared only where all have as many; give the same number of each."
            )


def convolution(inputs: int, filters: int, size: Sequence[int]) -> nn.Conv2d:
    """3x3, of maps of a `size` that it keeps. Where they are one pixel wide or high, so is the kernel.

    The rest of a kernel would see nothing but padding there. Weights start as in the authors' code: normal, variance 2
    over the fan out.
    """
    height, width = (3 if side > 1 else 1 for side in size)
    layer = nn.Conv2d(inputs, filters, (height, width), padding="same", bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
