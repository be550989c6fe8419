"""Figures hold what they should show."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.episodes import STREAM, EpisodeDataset
from lightning_meta.datamodules.functions.sinusoid import SinusoidSource
from lightning_meta.viz import adaptation_curve, episode_gallery, sine_fits
from lightning_meta.viz.style import BLUE, VERMILLION

N, K, Q = 3, 2, 10


def episode(channels: int) -> tuple[Batch, Batch]:
    """Images shuffled over classes: no function may rely on their order."""
    labels = [torch.arange(N).repeat(each) for each in (K, Q)]
    support, query = (Batch(torch.rand(len(y), channels, 6, 6), y) for y in labels)
    return support, query


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery_marks_every_query_shown(channels: int) -> None:
    support, query = episode(channels)
    predicted = query.y.clone()
    wrong = (query.y == 1).nonzero().flatten()[:2]  # the first two queries of class 1 are taken for class 2
    predicted[wrong] = 2
    figure = episode_gallery(support, query, torch.nn.functional.one_hot(predicted, N).float(), max_query=4)
    (axes,) = figure.axes
    assert len(axes.images) == len(axes.patches) == N * (K + 4)
    marks = [text for text in texts(figure) if text[0] in "✓✗"]
    assert marks == ["✓"] * 4 + ["✗ 2"] * 2 + ["✓"] * 2 + ["✓"] * 4
    frames = [to_hex(patch.get_edgecolor(), keep_alpha=False).upper() for patch in axes.patches]
    assert frames.count(BLUE) == 10 and frames.count(VERMILLION) == 2
    assert "28 of 30 queries right (93%)" in texts(figure)[0]  # of all queries, not of those shown


def test_gallery_shows_ink_on_paper() -> None:
    support, query = episode(1)
    support.x[:] = 0
    support.x[0, 0, 0, 0] = 1
    figure = episode_gallery(support, query, torch.rand(N * Q, N))
    pixels = figure.axes[0].images[0]
    colours = pixels.cmap(pixels.norm(pixels.get_array()))[..., :3].squeeze()
    assert (colours[0, 0] == 0).all() and (colours[1:] == 1).all()


def test_adaptation_curve_has_line_band_and_training_steps() -> None:
    mean, ci95 = torch.linspace(0.2, 0.9, 11), torch.full((11,), 0.1)
    figure = adaptation_curve(range(11), {"loss": (1 - mean, ci95), "acc": (mean, ci95)}, episodes=100, inner_steps=5)
    assert "over 100 episodes" in figure.get_suptitle()
    assert [axes.get_ylabel() for axes in figure.axes] == ["query loss", "query accuracy (fraction)"]
    curve, mark = figure.axes[1].lines
    assert curve.get_ydata() == pytest.approx(mean.numpy())
    assert mark.get_xdata() == [5, 5]
    band = figure.axes[1].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.1) and band[:, 1].max() == pytest.approx(1.0)


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
