"""One classification episode as pictures: what was shown and what was recognised."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import east_asian_width

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.viz.fonts import NAME, drawable, families, short
from lightning_meta.viz.style import BLUE, DPI, GREY, INK, LABEL, SMALL, TITLE, VERMILLION

# Inches.
IMAGE, GAP, CAPTION = 0.8, 0.1, 0.24  # side of an image; space between images; text below them
LEFT, TOP, MARGIN = 0.85, 0.85, 0.12  # room for the names of the classes and for the title; other sides
SEPARATION = 0.35  # between support and query
LEGEND = 0.3  # room for the meaning of the frames
WIDTH = 6.0  # at least, for the title
CHARACTER, MORE = 0.085, 0.5  # of a name or title; room for how many images are not shown
FILE, FILE_SIZE = 14, 6  # characters at most of a file's name below its image, and their points
FILES = 0.14  # room for a line of them


def episode_gallery(
    support: Batch,
    query: Batch,
    preds: Tensor,
    title: str = "Episode",
    names: Mapping[int, str] | None = None,
    max_support: int = 5,
    max_query: int = 8,
) -> Figure:
    """A row for each class: its support images at the left, its query images with their predictions at the right.

    A right prediction has a thin blue frame and a check mark, a wrong one a thick red frame, a cross and the class it
    was taken for: the mark and the thickness serve readers who do not see the colours.

    Args:
        support: images `(N*K, C, H, W)` in [0, 1] and labels `(N*K,)`; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        query: likewise `(N*Q, C, H, W)` and `(N*Q,)`.
        preds: logits of the query images `(N*Q, N)`.
        title: names the episode; its score is added below.
        names: of the classes by their labels. None: they have none.
        max_support, max_query: images shown per class.
    """
    predicted = preds.argmax(-1)
    correct = predicted == query.y
    classes = support.y.unique().tolist()
    shown = {c: f"class {c}" for c in classes}
    if names:
        shown |= dict(zip(classes, short(drawable([names[c] for c in classes], "class"), NAME), strict=True))
    n_support = min(max_support, int(support.y.bincount().max()))
    n_query = min(max_query, int(query.y.bincount().max()))
    left_support = _room_for(shown.values())
    query_left = left_support + n_support * (IMAGE + GAP) - GAP + SEPARATION
    taken = "✗ name: taken for that class" if names else "✗ n: taken for class n"
    heading = f"query   (✓ right, {taken})"
    width = max(query_left + n_query * (IMAGE + GAP) - GAP + MARGIN, WIDTH)
    width = max(width, *(left + CHARACTER * len(s) for left, s in ((left_support, title), (query_left, heading))))
    height = TOP + len(classes) * (IMAGE + CAPTION) + MARGIN

    figure, axes = _sheet(width, height)
    score = f"{int(correct.sum())} of {len(correct)} queries right ({float(correct.double().mean()):.0%})"
    axes.text(left_support, MARGIN, f"{title}\n{score}", fontsize=TITLE, color=INK, va="top")
    axes.text(left_support, TOP - 0.06, "support", fontsize=LABEL, color=INK)
    axes.text(query_left, TOP - 0.06, heading, fontsize=LABEL, color=INK)
    for row, label in enumerate(classes):
        top = TOP + row * (IMAGE + CAPTION)
        name: dict[str, Any] = {"s": shown[label], "family": families(shown[label])}
        axes.text(left_support - GAP, top + IMAGE / 2, **name, fontsize=LABEL, color=INK, ha="right", va="center")
        for column, image in enumerate(support.x[support.y == label][:n_support]):
            _show(axes, image, left_support + column * (IMAGE + GAP), top, GREY, 0.8)
        for column, index in enumerate((query.y == label).nonzero().flatten()[:n_query].tolist()):
            left = query_left + column * (IMAGE + GAP)
            taken_for = int(predicted[index])
            wrong = short([shown.get(taken_for, "?")], FILE)[0] if names else taken_for
            mark, colour, thickness = ("✓", BLUE, 1.2) if correct[index] else (f"✗ {wrong}", VERMILLION, 2.6)
            _show(axes, query.x[index], left, top, colour, thickness)
            _below(axes, left, top + IMAGE + 0.04, mark, SMALL if len(mark) < 8 else FILE_SIZE, colour)
    return figure


def prediction_gallery(
    support: Batch,
    query: Tensor,
    classes: Sequence[str],
    predicted: Tensor,
    probability: Tensor,
    title: str = "Predictions",
    files: Sequence[str] = (),
    max_support: int = 5,
    max_query: int = 12,
) -> Figure:
    """A row for each class: its support images at the left, the query images that were taken for it at the right.

    These are ordered by their probability, which stands below with the file; a doubtful one (less than 1/2) has a thick
    red frame.

    Args:
        support: images `(S, C, H, W)` in [0, 1] and labels `(S,)`; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        query: images `(Q, C, H, W)`.
        classes: name of each label.
        predicted: labels `(Q,)`.
        probability: of the predicted label `(Q,)`.
        title: of the picture.
        files: names of the query images; none: they have none.
        max_support, max_query: images shown per class; how many are not shown is said.
    """
    names, file_names = short(drawable(classes, "class"), NAME), short(drawable(files, "file"), FILE)
    n_support = min(max_support, int(support.y.bincount().max()))
    n_query = min(max_query, int(predicted.bincount().max()))
    left_support, pitch = _room_for(names), IMAGE + CAPTION + (FILES if files else 0)
    left_query = left_support + n_support * (IMAGE + GAP) - GAP + SEPARATION
    width = max(left_query + n_query * (IMAGE + GAP) - GAP + MORE, left_support + CHARACTER * len(title), WIDTH)
    figure, axes = _sheet(width, TOP + len(names) * pitch + LEGEND + MARGIN)

    axes.text(left_support, MARGIN, f"{title}\n{len(query)} query images", fontsize=TITLE, color=INK, va="top")
    axes.text(left_support, TOP - 0.06, "support", fontsize=LABEL, color=INK)
    axes.text(left_query, TOP - 0.06, "query, with the probability of this class", fontsize=LABEL, color=INK)
    legend: dict[str, Any] = {"y": TOP + len(names) * pitch + LEGEND / 2, "va": "center", "fontsize": SMALL}
    axes.text(left_support, s="thin blue frame: probability of 50 % or more", color=BLUE, **legend)
    axes.text(left_support + 3.0, s="thick red frame, ?: less than 50 %", color=VERMILLION, **legend)
    for label, name in enumerate(names):
        top = TOP + label * pitch
        centre: dict[str, Any] = {"y": top + IMAGE / 2, "fontsize": LABEL, "color": INK, "va": "center"}
        axes.text(left_support - GAP, s=name, family=families(name), ha="right", **centre)
        for column, image in enumerate(support.x[support.y == label][:n_support]):
            _show(axes, image, left_support + column * (IMAGE + GAP), top, GREY, 0.8)
        taken = (predicted == label).nonzero().flatten()
        taken = taken[probability[taken].argsort(descending=True, stable=True)]
        for column, index in enumerate(taken[:n_query].tolist()):
            left = left_query + column * (IMAGE + GAP)
            sure = bool(probability[index] >= 0.5)
            colour, thickness = (BLUE, 1.2) if sure else (VERMILLION, 2.6)
            _show(axes, query[index], left, top, colour, thickness)
            text = f"{probability[index]:.0%}" if sure else f"? {probability[index]:.0%}"
            _below(axes, left, top + IMAGE + 0.04, text, SMALL, colour)
            if files:
                _below(axes, left, top + IMAGE + 0.04 + FILES, file_names[index], FILE_SIZE, INK)
        if len(taken) > n_query:
            axes.text(left_query + n_query * (IMAGE + GAP), s=f"+ {len(taken) - n_query}", **centre)
    return figure


def _room_for(names: Iterable[str]) -> float:
    """Inches at the left of the support images, for the names of the classes. A letter may be as wide as two."""
    widths = (sum(1 + (east_asian_width(letter) in "WF") for letter in name) for name in names)
    return max(LEFT, MARGIN + GAP + CHARACTER * max(widths))


def _below(axes: Axes, left: float, top: float, text: str, size: float, colour: str) -> None:
    """A caption in the middle below an image."""
    axes.text(left + IMAGE / 2, top, text, family=families(text), fontsize=size, color=colour, ha="center", va="top")


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """One coordinate system in inches from the upper left corner: hundreds of axes would take seconds."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_autoscale_on(False)  # images would move the limits
    return figure, axes


def _show(axes: Axes, image: Tensor, left: float, top: float, colour: str, thickness: float) -> None:
    pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    # The colour map concerns images of one channel only.
    axes.imshow(pixels, "gray_r", aspect="auto", vmin=0, vmax=1, extent=(left, left + IMAGE, top + IMAGE, top))
    axes.add_patch(Rectangle((left, top), IMAGE, IMAGE, fill=False, edgecolor=colour, linewidth=thickness))
