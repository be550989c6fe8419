"""Callbacks of every run."""

from lightning_meta.callbacks.adaptation_curve import AdaptationCurve
from lightning_meta.callbacks.calibration import Calibration
from lightning_meta.callbacks.checkpoint import EpisodicCheckpoint
from lightning_meta.callbacks.completions import Completions
from lightning_meta.callbacks.divergence import ReplayStep, StopOnDivergence
from lightning_meta.callbacks.embedding_map import EmbeddingMap
from lightning_meta.callbacks.episode_gallery import EpisodeGallery
from lightning_meta.callbacks.episode_table import EpisodeTable
from lightning_meta.callbacks.layer_similarity import LayerSimilarity
from lightning_meta.callbacks.learning_curves import LearningCurves
from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.process_fits import ProcessFits
from lightning_meta.callbacks.progress import Parameters, Progress
from lightning_meta.callbacks.sequence_error import SequenceError
from lightning_meta.callbacks.sine_fits import SineFits
from lightning_meta.callbacks.summary import RunSummary
from lightning_meta.callbacks.support_use import SupportUse
from lightning_meta.callbacks.throughput import Throughput

__all__ = [
    "AdaptationCurve",
    "Calibration",
    "Completions",
    "EmbeddingMap",
    "EpisodeGallery",
    "EpisodeTable",
    "EpisodicCheckpoint",
    "LayerSimilarity",
    "LearningCurves",
    "Parameters",
    "Pictures",
    "ProcessFits",
    "Progress",
    "ReplayStep",
    "RunSummary",
    "SequenceError",
    "SineFits",
    "StopOnDivergence",
    "SupportUse",
    "Throughput",
]
