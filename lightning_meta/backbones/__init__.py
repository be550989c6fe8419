"""Feature extractors."""

from lightning_meta.backbones.base import Backbone, FittedBackbone
from lightning_meta.backbones.cell import Cell
from lightning_meta.backbones.conv4 import Conv4
from lightning_meta.backbones.dropblock import DropBlock
from lightning_meta.backbones.learn2learn_backbone import Learn2LearnBackbone
from lightning_meta.backbones.lora import LoRA
from lightning_meta.backbones.mlp import MLP
from lightning_meta.backbones.neighbour_encoder import NeighbourEncoder
from lightning_meta.backbones.next_token import NextToken, TokenLSTM, TokenTransformer
from lightning_meta.backbones.norm import EpisodicBatchNorm2d, norm_protocol, support_statistics
from lightning_meta.backbones.r2d2_net import R2D2Net
from lightning_meta.backbones.resnet12 import ResNet12
from lightning_meta.backbones.speech_net import SpeechNet
from lightning_meta.backbones.text import BagOfWords, EmbeddingAverage, TextCNN
from lightning_meta.backbones.translator import Translator
from lightning_meta.backbones.word_windows import WordWindows
from lightning_meta.backbones.wrap import Timm, Wrapped, as_backbone
from lightning_meta.backbones.wrn import WideResNet

__all__ = [
    "MLP",
    "Backbone",
    "BagOfWords",
    "Cell",
    "Conv4",
    "DropBlock",
    "EmbeddingAverage",
    "EpisodicBatchNorm2d",
    "FittedBackbone",
    "Learn2LearnBackbone",
    "LoRA",
    "NeighbourEncoder",
    "NextToken",
    "R2D2Net",
    "ResNet12",
    "SpeechNet",
    "TextCNN",
    "Timm",
    "TokenLSTM",
    "TokenTransformer",
    "Translator",
    "WideResNet",
    "WordWindows",
    "Wrapped",
    "as_backbone",
    "norm_protocol",
    "support_statistics",
]
