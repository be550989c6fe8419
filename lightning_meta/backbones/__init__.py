"""Feature extractors. Each has `in_shape` (of one input) and `out_features`, and is right under vmap."""


from lightning_meta.backbones.conv4 import Conv4
from lightning_meta.backbones.mlp import MLP
from lightning_meta.backbones.norm import EpisodicBatchNorm2d, norm_protocol, support_statistics

__all__ = ["MLP", "Conv4", "EpisodicBatchNorm2d", "norm_protocol", "support_statistics"]
