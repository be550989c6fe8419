"""CNAPs: what a task is like scales and shifts the channels of the backbone; a network writes the classifier.

Requeima, Gordon, Bronskill, Nowozin, Turner: "Fast and Flexible Multi-Task Classification Using Conditional Neural
Adaptive Processes" (2019), arXiv:1906.07697.

An encoder reads the support images; the mean of what it says of them is the task's embedding, from which come the
scale and shift of every normalisation of the backbone (FiLM: Perez et al. 2018, arXiv:1709.07871). The weights of a
class come from its mean feature. There is no inner loop, and the way and the shots may differ between tasks.

Deviations: scales and shifts are a linear function of the embedding (`GeneratedParams`); in the paper those of a layer
come from a network of their own, which can also read the features before it (the autoregressive form). In the paper the
backbone was trained on ImageNet and is frozen; here it is trained too unless `freeze` is true.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms.compare.r2d2 import with_ones
from lightning_meta.algorithms.compare.versa import perceptron
from lightning_meta.backbones import Backbone, as_backbone, support_statistics
from lightning_meta.backbones.norm import batch_norm_layers
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.core.generated import GeneratedParams
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules import EpisodicModule


class AdaptedNetwork(NamedTuple):
    """Scales, shifts and statistics of the backbone by name; each class's weights `(C, D + 1)`; which there are."""

    params: Params
    weights: Tensor
    present: Tensor


class CNAPs(EpisodicModule[AdaptedNetwork]):
    """A backbone in the light of the task, and a linear classifier that is written for it.

    Args:
        backbone: whose normalisations have a scale and a shift.
        encoder: of the task's embedding; a small network does.
        rank: numbers of an embedding that the scales and shifts depend on.
        freeze: leave the weights of the backbone as they are, `pretrained`.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self, backbone: Backbone, encoder: Backbone, rank: int = 16, freeze: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(1, rank=rank)
        self.backbone = as_backbone(backbone, norm="transductive")
        self.encoder = as_backbone(encoder, norm="transductive")
        if not self.modulated():
            raise ConfigError(
                f"{type(backbone).__name__} has no batch normalisation, whose scales and shifts the task would say; "
                "take another backbone, such as Conv4."
            )
        self.generated = GeneratedParams(self.modulated(), self.encoder.out_features, rank)
        size = self.backbone.out_features
        self.class_weight, self.class_bias = perceptron(size, size), perceptron(size, 1)
        if freeze:
            self.backbone.requires_grad_(False)

    def modulated(self) -> Params:
        """Scales and shifts of the backbone's normalisations."""
        return {
            f"{name}.{part}": getattr(layer, part)
            for name, layer in batch_norm_layers(self.backbone).items()
            for part in ("weight", "bias")
        }

    def adapt(self, support: Batch) -> AdaptedNetwork:
        film = self.generated(self.modulated(), self.encoder(support.x).mean(0))
        params = film | support_statistics(self.backbone, film, support.x)
        means_CD, present_C = class_means(functional_call(self.backbone, params, (support.x,)), support.y)
        return AdaptedNetwork(params, torch.cat([self.class_weight(means_CD), self.class_bias(means_CD)], 1), present_C)

    def query_loss(self, adapted: AdaptedNetwork, query: Batch) -> TaskOutput:
        features_QD = functional_call(self.backbone, adapted.params, (query.x,))
        logits_QC = exclude_absent(with_ones(features_QD) @ adapted.weights.T, adapted.present)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
