"""The Lightning seam: the only modules that know the Trainer."""

from lightning_meta.modules.episodic import EpisodicModule

__all__ = ["EpisodicModule"]
