"""Cross Attention Network: a query and a class look at each other's feature maps, and at what both of them show.

Hou, Chang, Ma, Shan, Chen: "Cross Attention Network for Few-shot Classification" (2019), arXiv:1910.07677.

The cosines between all places of the two maps are fused to an attention over the places of each. It is a product with a
kernel that a small network makes of their mean. Training has two losses: every place of a query is to be nearest to its
class among those of the episode, and to be named among all classes of meta-training.

As in the authors' code, that product is divided by the number of places, and cosines are multiplied by a scale.

Deviations: the inductive part; the paper's second one adds confident queries to the support set. No normalisation
between the two layers of the small network, as in the paper; the authors' code has one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors, map_shape
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import NamingModule


class ClassMaps(NamedTuple):
    """For each support example the mean map of its class `(S, P, D)`, and its label `(S,)`."""

    maps: Tensor
    labels: Tensor


class CAN(NamingModule[ClassMaps]):
    """Logits are scaled cosines between the means of a query's and a class's map, each under attention to the other.

    Shapes: `M` places of a query's map, `P` those of a class's; the rest as in `core/episode.py`. Class slots are the
    support examples, each of which stands for its class. The way is read from the episode, so it may differ between
    training and testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` (see `Conv4`), which
            must have more than one place.
        n_classes: of `NamingModule`.
        reduction: how many times fewer units the small network has between its layers than places.
        temperature: of the attention.
        scale: of the cosines.
        nearest_weight: in training, of the first loss (the paper's lambda).
        **kwargs: of `NamingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        reduction: int = 6,
        temperature: float = 0.025,
        scale: float = 7.0,
        nearest_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.map_shape = map_shape(self.backbone)
        places = self.map_shape[1] * self.map_shape[2]
        if places < 2:
            raise ConfigError(
                f"CAN attends to the places of a map, but the maps of {type(self.backbone).__name__} have one place; "
                "take larger maps, such as Conv4 with halvings=2."
            )
        if temperature <= 0 or reduction < 1:
            raise ConfigError(f"temperature={temperature} must be positive, and reduction={reduction} at least 1.")
        self.temperature, self.scale, self.nearest_weight = temperature, scale, nearest_weight
        hidden = max(1, places // reduction)
        self.kernel = nn.Sequential(nn.Linear(places, hidden), nn.ReLU(), nn.Linear(hidden, places))
        for layer in self.kernel:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    @property
    def classified_features(self) -> int:
        return map_shape(self.backbone)[0]

    def attention(self, cosines: Tensor) -> Tensor:
        """Of the places of one map, from their cosines with those of the other `(..., P, M)`: `(..., P)`, 1 or more."""
        kernel = self.kernel(cosines.mean(-2))
        fused = (cosines * kernel[..., None, :]).mean(-1)
        return 1 + (fused / self.temperature).softmax(-1)

    def adapt_head(self, support: Batch) -> ClassMaps:
        maps_SPD = descriptors(support.x, self.map_shape)
        same_SS = (support.y[:, None] == support.y).to(maps_SPD.dtype)
        means_SPD = torch.einsum("st,tpd->spd", same_SS, maps_SPD) / same_SS.sum(1)[:, None, None]
        return ClassMaps(means_SPD, support.y)

    def head_loss(self, classes: ClassMaps, query: Batch) -> TaskOutput:
        """In training the two losses, and predictions among all classes; in evaluation the loss of these."""
        maps_QMD = descriptors(query.x, self.map_shape)
        unit_QMD = F.normalize(maps_QMD, dim=-1)
        cosines_QSPM = torch.einsum("qmd,spd->qspm", unit_QMD, F.normalize(classes.maps, dim=-1))
        attention_QSP, attention_QSM = self.attention(cosines_QSPM), self.attention(cosines_QSPM.mT)
        classes_QSD = F.normalize(torch.einsum("qsp,spd->qsd", attention_QSP, classes.maps), dim=-1)
        queries_QSD = F.normalize(torch.einsum("qsm,qmd->qsd", attention_QSM, maps_QMD), dim=-1)
        labels = self.trained_classifier.out_features if self.training else len(classes.labels)
        logits_QC = by_label(self.scale * (classes_QSD * queries_QSD).sum(-1), classes.labels, labels)
        if not self.training:
            return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
        # Attention to a place does not change its cosines.
        cosines_QMS = torch.einsum("qmd,qsd->qms", unit_QMD, classes_QSD)
        nearest = at_each_place(by_label(self.scale * cosines_QMS, classes.labels, labels), query.y)
        own_QS = (query.y[:, None] == classes.labels).to(maps_QMD.dtype)
        own_QM = torch.einsum("qs,qsm->qm", own_QS / own_QS.sum(1, keepdim=True), attention_QSM)
        named = at_each_place(self.class_logits(own_QM[..., None] * maps_QMD), query.y)
        return TaskOutput(named + self.nearest_weight * nearest, logits_QC, {"nearest": nearest.detach()})


def by_label(scores: Tensor, labels_S: Tensor, labels: int) -> Tensor:
    """Scores `(..., C)` of labels, from equal ones of all support examples of a class `(..., S)`."""
    members_SC = F.one_hot(labels_S, labels).to(scores.dtype)
    counts_C = members_SC.sum(0)
    return exclude_absent(scores @ (members_SC / counts_C.clamp_min(1)), counts_C > 0)


def at_each_place(logits_QMC: Tensor, labels_Q: Tensor) -> Tensor:
    """Mean cross-entropy of all places of all queries."""
    return F.cross_entropy(logits_QMC.flatten(0, 1), labels_Q.repeat_interleave(logits_QMC.shape[1]))
