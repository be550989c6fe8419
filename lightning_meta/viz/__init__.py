"""Pictures: pure functions from tensors to a matplotlib `Figure`. No pyplot, so no global state and no display."""

from lightning_meta.viz.adaptation_curve import adaptation_curve
from lightning_meta.viz.gallery import episode_gallery
from lightning_meta.viz.layer_similarity import layer_similarity
from lightning_meta.viz.sine_fit import sine_fits

__all__ = ["adaptation_curve", "episode_gallery", "layer_similarity", "sine_fits"]
