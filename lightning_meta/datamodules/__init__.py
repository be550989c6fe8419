"""Episodic data: every data set is a source of tasks on one base."""

from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.cifar import CIFARFS, FC100
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.glyphs import Glyphs
from lightning_meta.datamodules.image_folder import ClassSplit, ImageFolder
from lightning_meta.datamodules.omniglot import Omniglot
from lightning_meta.datamodules.sinusoid import Sinusoid
from lightning_meta.datamodules.sinusoid_with_identity import SinusoidWithIdentity

__all__ = [
    "CIFARFS",
    "FC100",
    "ClassSplit",
    "ClassificationDataModule",
    "EpisodicDataModule",
    "Glyphs",
    "ImageFolder",
    "Omniglot",
    "Sinusoid",
    "SinusoidWithIdentity",
]
