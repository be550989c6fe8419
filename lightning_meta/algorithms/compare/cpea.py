"""CPEA: patches are compared after each has been told what its image is of, by the class token of a Vision Transformer.

Hao, He, Liu, Wu, Tao, Cheng: "Class-Aware Patch Embedding Adaptation for Few-Shot Image Classification" (2023), ICCV.

The class token's part in the mean of all tokens and the token itself are added to every patch. A small network turns
the squared products of all pairs of patches of a query and a class into a score. A class is the mean of its images.

Deviations: none where the backbone gives a class token and patches, apart from the authors' second, 100 times larger
learning rate for all that is not backbone. Of other maps the mean of all places stands for the class token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors, map_shape
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule


class ClassPatches(NamedTuple):
    """Adapted patches of the classes `(C, L, D)`, and which class slots have some `(C,)`."""

    patches: Tensor
    present: Tensor


class CPEA(EmbeddingModule[ClassPatches]):
    """Logits are scores of all pairs of patches of a query and a class.

    Shapes: `L` patches; the rest as in `core/episode.py`. The way is read from the episode, so it may differ between
    training and testing.

    Args:
        backbone: the embedding.
        width: of a token, where features are tokens side by side, the class token first; so it is with a Vision
            Transformer of timm that is told `options: {global_pool: ""}`. None: they are read as maps of the shape
            `backbone.map_shape` (see `Conv4`), which must have more than one place.
        class_weight: of the class token in each patch (the paper's lambda).
        hidden: units of the network that scores.
        smoothing: in training, the share of a label that the other classes of the episode get.
        dropout: probability of dropping a unit, within both networks and of what they return.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int | None = None,
        class_weight: float = 2.0,
        hidden: int = 256,
        smoothing: float = 0.1,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.map_shape, self.width, size = map_shape(self.backbone), width, self.backbone.out_features
        if width is not None and (size % width or size == width):
            raise ConfigError(
                f"width={width}: the {size} features of {type(self.backbone).__name__} are no class token and patches "
                "of that width; give that of its tokens (384 of a ViT-small), and let it return all of them."
            )
        patches = self.map_shape[1] * self.map_shape[2] if width is None else size // width - 1
        if width is None and patches < 2:
            raise ConfigError(
                f"CPEA compares patches, but the maps of {type(self.backbone).__name__} have one place; take larger "
                "maps, such as Conv4 with halvings=2, or for tokens of a Vision Transformer set their width."
            )
        self.class_weight, self.smoothing = class_weight, smoothing
        features = width or self.map_shape[0]
        self.class_aware = perceptron(features, max(1, features // 4), features, dropout)
        self.norm = nn.LayerNorm(features)
        self.score = perceptron(patches**2, hidden, 1, dropout)

    def tokens(self, features_BX: Tensor) -> Tensor:
        """`(B, 1 + L, D)`, the class token first."""
        if self.width is not None:
            return features_BX.unflatten(1, (-1, self.width))
        places_BLD = descriptors(features_BX, self.map_shape)
        return torch.cat([places_BLD.mean(1, keepdim=True), places_BLD], dim=1)

    def patches(self, features_BX: Tensor) -> Tensor:
        """`(B, L, D)`, aware of the class."""
        tokens = self.tokens(features_BX)
        tokens = self.norm(tokens + self.class_aware(tokens.mean(1, keepdim=True)))
        return tokens[:, 1:] + self.class_weight * tokens[:, :1]

    def adapt_head(self, support: Batch) -> ClassPatches:
        patches_SLD = self.patches(support.x)
        means_CX, present_C = class_means(patches_SLD.flatten(1), support.y)
        return ClassPatches(unit(means_CX.unflatten(1, patches_SLD.shape[1:])), present_C)

    def head_loss(self, classes: ClassPatches, query: Batch) -> TaskOutput:
        """In training of smoothed labels, in evaluation the plain loss."""
        products = torch.einsum("qld,ckd->qckl", unit(self.patches(query.x)), classes.patches)
        logits_QC = exclude_absent(self.score(products.square().flatten(2))[..., 0], classes.present)
        own_Q = -F.cross_entropy(logits_QC, query.y, reduction="none")
        if not self.training:
            return TaskOutput(-own_Q.mean(), logits_QC)
        all_Q = torch.where(classes.present, logits_QC.log_softmax(1), 0).sum(1)
        others_Q = (all_Q - own_Q) / (classes.present.sum() - 1)
        return TaskOutput(-((1 - self.smoothing) * own_Q + self.smoothing * others_Q).mean(), logits_QC)


def unit(patches: Tensor) -> Tensor:
    """At length one, and then less the mean of the features."""
    patches = F.normalize(patches, dim=-1)
    return patches - patches.mean(-1, keepdim=True)


def perceptron(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs), nn.Dropout(dropout)
    )
