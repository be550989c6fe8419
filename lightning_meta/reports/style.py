"""The one style of all pictures."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

Curve = tuple[Tensor, Tensor]  # mean and half-width of its interval at each of S points, `(S,)`

# Of the palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, GREY = "#222222", "#8A8A8A"
TITLE, LABEL, SMALL = 11, 10, 9  # points
DPI = 150  # dots per inch
LETTER = 0.58  # its width, by the size of the font


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, `width` x `height` inches, that makes room for its labels by itself; long titles are wrapped."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    most = int(width * 72 / (LETTER * TITLE))
    figure.suptitle("\n".join(fill(line, most) for line in title.splitlines()), fontsize=TITLE, color=INK)
    return figure


def tidy(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    """Two spines, a faint grid behind the data, and labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=SMALL, color=GREY, labelcolor=INK)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, fontsize=LABEL, color=INK)
    axes.set_ylabel(y_label, fontsize=LABEL, color=INK)


def curves_with_bands(title: str, curves: Mapping[str, Curve], lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Means as lines, in the styles of `lines`, their intervals as bands; over the number of the point, both named.

    The axis is logarithmic, so a band that reaches below half its mean ends there.
    """
    figure = new_figure(6.4, 4.2, title)
    axes = figure.subplots()
    for (name, (mean, ci95)), line in zip(curves.items(), lines, strict=False):
        mean, ci95 = mean.cpu(), ci95.cpu().nan_to_num(0)  # one of a kind has no interval
        points = range(len(mean))
        axes.fill_between(points, (mean - ci95).maximum(mean / 2), mean + ci95, color=line["color"], alpha=0.2, lw=0)
        axes.plot(points, mean, label=name, **line)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=LABEL)
    return figure
