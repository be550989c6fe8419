"""Figures: titles of any length are within them."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_meta.reports.style import new_figure

LONG = "MAML on SwitchedCiphers, 20 sentences of one language, then 20 that switch, 1.97 nats per token at best"


@pytest.mark.parametrize("width", [4.0, 4.6, 9.2])
def test_a_long_title_is_wrapped(width: float) -> None:
    figure = new_figure(width, 3.8, f"{LONG}\nmean over 50 episodes")
    figure.subplots()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    title = figure.texts[0].get_window_extent(canvas.get_renderer())
    assert title.x0 > 0 and title.x1 < figure.bbox.x1
    assert figure.get_suptitle().replace("\n", " ") == f"{LONG} mean over 50 episodes"
    assert figure.get_suptitle().endswith("\nmean over 50 episodes")
