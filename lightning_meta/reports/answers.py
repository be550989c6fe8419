"""What an answer of `serve` rests on: the nearest support images, or how adaptation went."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.reports.fonts import NAME, drawable, short
from lightning_meta.reports.sheet import CAPTION, GAP, IMAGE, MARGIN, SEPARATION, below, sheet, show
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, SMALL, new_figure, tidy

HEAD = 0.3  # inches above the images, for what they are


def neighbours(query: Tensor, images: Tensor, names: Sequence[str], distances: Tensor, most: int = 5) -> Figure:
    """The query image, and at its right the support images whose features are nearest, with class and distance.

    Args:
        query: image `(C, H, W)` in [0, 1]; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        images: of the support set `(S, C, H, W)`.
        names: of their classes.
        distances: of their features from the query's `(S,)`.
        most: how many are shown.
    """
    nearest = distances.argsort(stable=True)[:most].tolist()
    left = MARGIN + IMAGE + SEPARATION
    figure, axes = sheet(left + most * (IMAGE + GAP) + MARGIN, HEAD + IMAGE + 2 * CAPTION + MARGIN)
    axes.text(MARGIN, HEAD - 0.08, "query", fontsize=LABEL, color=INK)
    axes.text(left, HEAD - 0.08, "nearest support images, distance of features", fontsize=LABEL, color=INK)
    show(axes, query, MARGIN, HEAD, BLUE, 1.6)
    shown = short(drawable(names, "class"), NAME)
    for column, index in enumerate(nearest):
        start = left + column * (IMAGE + GAP)
        show(axes, images[index], start, HEAD, GREY, 0.8)
        below(axes, start, HEAD + IMAGE + 0.05, shown[index], SMALL, INK)
        below(axes, start, HEAD + IMAGE + 0.05 + CAPTION, f"{distances[index]:.3g}", SMALL, GREY)
    return figure


def support_curve(steps: Sequence[int], losses: Sequence[float], accuracies: Sequence[float]) -> Figure:
    """Loss and accuracy on the support set after some numbers of inner steps."""
    figure = new_figure(6.4, 2.6, "Adaptation: the support set after inner steps")
    panels = figure.subplots(1, 2)
    curves = (("support loss", losses), ("support accuracy (%)", [100 * value for value in accuracies]))
    for axes, (name, values) in zip(panels, curves, strict=True):
        axes.plot(steps, values, color=BLUE, marker="o", markersize=3.5, linewidth=1.5)
        tidy(axes, "inner steps", name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[1].set_ylim(-4, 104)
    return figure
