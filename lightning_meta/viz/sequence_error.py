"""How the error of learners falls from example to example."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.viz.style import BLUE, GREY, LABEL, VERMILLION, new_figure, tidy

# In the order of the curves.
LINES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "-", "linewidth": 2.0},
    {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
    {"color": GREY, "linestyle": ":", "linewidth": 1.5},
)
SMALLEST = 1e-8  # squared error below which a fit is as good as exact: leaves the panel


def sequence_error(curves: Mapping[str, tuple[Tensor, Tensor]], episodes: int, title: str = "Learning") -> Figure:
    """The mean over episodes as a line, its 95 % confidence interval as a band; a logarithmic axis.

    Args:
        curves: for each of up to three learners, its mean squared error `(S,)` at each example of a sequence, predicted
            from those before it, and the half-width `(S,)` of the interval.
        episodes: how many episodes the means are taken over.
        title: what was learned.
    """
    figure = new_figure(6.4, 4.2, f"{title}\nmean and 95 % interval over {episodes} episodes")
    axes = figure.subplots()
    for (name, (mean, ci95)), line in zip(curves.items(), LINES, strict=False):
        mean, ci95 = mean.cpu(), ci95.cpu().nan_to_num(0)  # a single episode has no interval
        seen = range(len(mean))
        axes.fill_between(seen, (mean - ci95).clamp_min(SMALLEST), mean + ci95, color=line["color"], alpha=0.2, lw=0)
        axes.plot(seen, mean, label=name, **line)
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(SMALLEST, 0.3 * float(min(mean[mean > SMALLEST].min() for mean, _ in curves.values()))))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, "examples seen", "mean squared error at the next example")
    axes.legend(frameon=False, fontsize=LABEL)
    return figure
