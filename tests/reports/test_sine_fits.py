"""True waves and fits to them."""

import numpy as np
import torch

from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.episodes import STREAM, EpisodeDataset
from lightning_meta.datamodules.functions.sinusoid import SinusoidSource
from lightning_meta.reports.sine_fits import sine_fits


def test_sine_fits_draw_a_panel_for_each_task() -> None:
    x = torch.linspace(-5, 5, 50)
    truth = torch.stack([x.sin(), 3 * x.cos()])
    support = Batch(torch.zeros(2, 4, 1), torch.zeros(2, 4, 1))
    figure = sine_fits(x, truth, support, {10: truth, 0: 0 * truth, 1: 1e9 * truth})
    assert len(figure.axes) == 2
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["true wave", "before adaptation", "1 step", "10 steps", "support points"]
    assert figure.axes[0].get_ylim()[1] < 5  # the diverged fit does not flatten the waves


def test_true_wave_passes_through_the_points() -> None:
    source, ids = SinusoidSource(), range(100)
    tasks = EpisodeDataset(source, EpisodeShape(1, 5, 5), 4, "test").__getitems__(ids)
    keys = episode_keys(4, STREAM["test"], ids)
    wave = torch.from_numpy(source.wave(keys, tasks.query.x.squeeze(-1).double().numpy()))
    torch.testing.assert_close(wave.float(), tasks.query.y.squeeze(-1), atol=1e-5, rtol=0)
    # A sin(x - phase) with 0 <= phase <= pi: -A sin(phase) at 0, A cos(phase) at pi / 2.
    at_0, at_half_pi = source.wave(keys, np.array([0, np.pi / 2])).T
    assert (at_0 < 0).all() and at_half_pi.min() < 0 < at_half_pi.max()
    amplitude = np.hypot(at_0, at_half_pi)
    assert 0.1 <= amplitude.min() < 0.5 and 4.5 < amplitude.max() <= 5
