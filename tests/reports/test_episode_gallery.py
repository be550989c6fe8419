"""Galleries hold what they should show: episodes with predictions, and images of a user."""

import warnings
from collections.abc import Iterator
from io import BytesIO

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font

from lightning_meta.core import Batch
from lightning_meta.reports.episode_gallery import episode_gallery
from lightning_meta.reports.fonts import drawable, families
from lightning_meta.reports.prediction_gallery import prediction_gallery
from lightning_meta.reports.style import BLUE, VERMILLION

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


def test_gallery_names_the_classes() -> None:
    support, query = episode(1)
    predicted = (query.y + 1) % N
    names = {0: "cat", 1: "dog", 2: "a name that is longer than there is room"}
    figure = episode_gallery(support, query, torch.nn.functional.one_hot(predicted, N).float(), "E", names, max_query=1)
    found = texts(figure)
    assert {"cat", "dog", "a name that…here is room"} <= {*found}
    assert [text for text in found if text[0] == "✗"] == ["✗ dog", "✗ a name…is room", "✗ cat"]
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in axes.texts:  # nothing is cut off
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_of_one_query_per_class_nothing_is_cut_off() -> None:
    support, query = episode(1)
    one = torch.arange(3)
    figure = prediction_gallery(
        support, query.x[:3], ["a rather long name of a class", "dog", "elk"], one, one / 3, "P"
    )
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.axes[0].texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text.get_text()


def test_predictions_show_names_files_and_what_frames_mean() -> None:
    support, query = episode(1)
    files = [f"photograph_number_{i:02d}.png" for i in range(len(query.y))]
    sure = torch.linspace(0.3, 0.9, len(query.y))
    figure = prediction_gallery(support, query.x, ["cat", "dog", "elk"], query.y, sure, "P", files)
    found = texts(figure)
    assert {
        "cat",
        "dog",
        "elk",
        "thin blue frame: probability of 50 % or more",
        "thick red frame, ?: less than 50 %",
    } <= {*found}
    shown = [text for text in found if text.endswith(".png")]
    assert sorted(shown) == [f"photog…_{i:02d}.png" for i in range(len(files))]
    below = {text: place for text, place in zip(found, figure.axes[0].texts, strict=True) if text in shown}
    of_confidence = [text for text in figure.axes[0].texts if text.get_text().startswith(("?", "3", "4", "9"))]
    assert {text.get_position()[0] for text in of_confidence} <= {text.get_position()[0] for text in below.values()}


@pytest.fixture
def without_glyphs_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph .* missing")
        yield


@pytest.mark.usefixtures("without_glyphs_is_an_error")
def test_names_are_drawn_by_whatever_font_has_their_letters() -> None:
    """Letters that the standard font lacks: one that another font has, and one that is of no font at all."""
    support, query = episode(1)
    fonts = [font for font in fontManager.ttflist if "Last Resort" not in font.name]  # which has boxes for all
    letters = {font.name: set(get_font(font.fname).get_charmap()) for font in fonts}
    other = chr(min(letters["STIXGeneral"] - letters["DejaVu Sans"]))
    nowhere = chr(next(c for c in range(0xF0000, 0xFFFFF) if not any(c in found for found in letters.values())))
    assert families("Grün") == ["DejaVu Sans"]
    assert families(f"a {other}")[0] == "DejaVu Sans" and len(families(f"a {other}")) == 2
    assert families(nowhere) is None
    assert drawable(["one", nowhere, other], "class") == ["one", "class 1", other]
    names = ["one", nowhere, f"a {other}"]
    figure = prediction_gallery(
        support, query.x, names, query.y, torch.rand(len(query.y)), files=[nowhere] * len(query.y)
    )
    figure.savefig(BytesIO())
    with pytest.raises(UserWarning, match="missing"):  # as it would be without a choice of fonts
        figure.text(0, 0, other, family="DejaVu Sans")
        figure.savefig(BytesIO())


def test_gallery_shows_ink_on_paper() -> None:
    support, query = episode(1)
    support.x[:] = 0
    support.x[0, 0, 0, 0] = 1
    figure = episode_gallery(support, query, torch.rand(N * Q, N))
    pixels = figure.axes[0].images[0]
    colours = pixels.cmap(pixels.norm(pixels.get_array()))[..., :3].squeeze()
    assert (colours[0, 0] == 0).all() and (colours[1:] == 1).all()
