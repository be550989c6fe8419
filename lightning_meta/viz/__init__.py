"""Pictures: pure functions from tensors to a matplotlib `Figure`. No pyplot, so no global state and no display."""

from lightning_meta.viz.adaptation_curve import adaptation_curve
from lightning_meta.viz.completion import completions
from lightning_meta.viz.embedding_map import embedding_map
from lightning_meta.viz.gallery import episode_gallery, prediction_gallery
from lightning_meta.viz.layer_similarity import layer_similarity
from lightning_meta.viz.learning_curves import learning_curves
from lightning_meta.viz.process_fit import process_fits
from lightning_meta.viz.reliability import reliability_diagram
from lightning_meta.viz.sequence_error import sequence_error
from lightning_meta.viz.sine_fit import sine_fits

__all__ = [
    "adaptation_curve",
    "completions",
    "embedding_map",
    "episode_gallery",
    "layer_similarity",
    "learning_curves",
    "prediction_gallery",
    "process_fits",
    "reliability_diagram",
    "sequence_error",
    "sine_fits",
]
