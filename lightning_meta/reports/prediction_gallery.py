"""Images of a user with what they were taken for: the picture of `predict`."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.reports.fonts import NAME, drawable, families, short
from lightning_meta.reports.sheet import (
    CAPTION,
    CHARACTER,
    FILE,
    FILE_SIZE,
    GAP,
    IMAGE,
    MARGIN,
    SEPARATION,
    TOP,
    WIDTH,
    below,
    room_for,
    sheet,
    show,
)  # fmt: skip
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, SMALL, TITLE, VERMILLION

# Inches.
LEGEND = 0.3  # room for the meaning of the frames
LEGENDS = (3.0, 2.6)  # widths of what is said of thin and of thick ones
MORE = 0.5  # room for how many images are not shown
FILES = 0.14  # room for a line of files' names below their images


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
    left_support, pitch = room_for(names), IMAGE + CAPTION + (FILES if files else 0)
    left_query = left_support + n_support * (IMAGE + GAP) - GAP + SEPARATION
    images, words = left_query + n_query * (IMAGE + GAP) - GAP + MORE, left_support + CHARACTER * len(title)
    width = max(images, words, left_support + sum(LEGENDS), WIDTH)
    figure, axes = sheet(width, TOP + len(names) * pitch + LEGEND + MARGIN)

    axes.text(left_support, MARGIN, f"{title}\n{len(query)} query images", fontsize=TITLE, color=INK, va="top")
    axes.text(left_support, TOP - 0.06, "support", fontsize=LABEL, color=INK)
    axes.text(left_query, TOP - 0.06, "query, with the probability of this class", fontsize=LABEL, color=INK)
    legend: dict[str, Any] = {"y": TOP + len(names) * pitch + LEGEND / 2, "va": "center", "fontsize": SMALL}
    axes.text(left_support, s="thin blue frame: probability of 50 % or more", color=BLUE, **legend)
    axes.text(left_support + LEGENDS[0], s="thick red frame, ?: less than 50 %", color=VERMILLION, **legend)
    for label, name in enumerate(names):
        top = TOP + label * pitch
        centre: dict[str, Any] = {"y": top + IMAGE / 2, "fontsize": LABEL, "color": INK, "va": "center"}
        axes.text(left_support - GAP, s=name, family=families(name), ha="right", **centre)
        for column, image in enumerate(support.x[support.y == label][:n_support]):
            show(axes, image, left_support + column * (IMAGE + GAP), top, GREY, 0.8)
        taken = (predicted == label).nonzero().flatten()
        taken = taken[probability[taken].argsort(descending=True, stable=True)]
        for column, index in enumerate(taken[:n_query].tolist()):
            left = left_query + column * (IMAGE + GAP)
            sure = bool(probability[index] >= 0.5)
            colour, thickness = (BLUE, 1.2) if sure else (VERMILLION, 2.6)
            show(axes, query[index], left, top, colour, thickness)
            text = f"{probability[index]:.0%}" if sure else f"? {probability[index]:.0%}"
            below(axes, left, top + IMAGE + 0.04, text, SMALL, colour)
            if files:
                below(axes, left, top + IMAGE + 0.04 + FILES, file_names[index], FILE_SIZE, INK)
        if len(taken) > n_query:
            axes.text(left_query + n_query * (IMAGE + GAP), s=f"+ {len(taken) - n_query}", **centre)
    return figure
