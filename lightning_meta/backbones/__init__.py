"""Feature extractors."""

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.conv4 import Conv4
from lightning_meta.backbones.mlp import MLP
from lightning_meta.backbones.norm import EpisodicBatchNorm2d, norm_protocol, support_statistics

__all__ = ["MLP", "Backbone", "Conv4", "EpisodicBatchNorm2d", "norm_protocol", "support_statistics"]
