"""Feature-wise transformation: a metric that is learned under features as other domains might have them.

Tseng, Lee, Huang, Yang: "Cross-Domain Few-Shot Classification via Learned Feature-Wise Transformation" (2020),
arXiv:2001.08735.

Deviations: the transformation with given deviations (the paper's FT), not learned ones (LFT), and after every batch
normalisation, not only the last of a residual block. The metric is that of Prototypical Networks; the paper's are
those of Matching, Relation and graph networks.
"""

from copy import deepcopy
from typing import Any

from lightning_meta.algorithms.compare.protonet import ProtoNet
from lightning_meta.backbones import Backbone
from lightning_meta.backbones.feature_wise import with_feature_wise_transformation
from lightning_meta.errors import ConfigError


class FeatureWiseTransformation(ProtoNet):
    """Prototypical Networks whose features are transformed at random in training, and not in evaluation.

    Args:
        backbone: the embedding; it must have batch normalisation.
        gamma, beta: standard deviations of the scale and the shift of a channel. With both 0 it is `ProtoNet`.
        **kwargs: of `ProtoNet`.
    """

    def __init__(self, backbone: Backbone, gamma: float = 0.3, beta: float = 0.5, **kwargs: Any) -> None:
        super().__init__(deepcopy(backbone), **kwargs)  # whose layers are replaced
        if not with_feature_wise_transformation(self.backbone, gamma, beta):
            raise ConfigError(
                f"features are transformed after batch normalisation, but {type(backbone).__name__} has none; take "
                "Conv4, say."
            )
