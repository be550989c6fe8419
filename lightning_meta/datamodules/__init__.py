"""Episodic data: every data set is a source of tasks on one base."""

from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.glyphs import Glyphs
from lightning_meta.datamodules.omniglot import Omniglot
from lightning_meta.datamodules.sinusoid import Sinusoid

__all__ = ["EpisodicDataModule", "Glyphs", "Omniglot", "Sinusoid"]
