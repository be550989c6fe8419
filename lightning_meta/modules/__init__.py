"""The Lightning seam: the only modules that know the Trainer."""

from lightning_meta.modules.episodic import EpisodicModule
from lightning_meta.modules.stream import StreamModule

__all__ = ["EpisodicModule", "StreamModule"]
