"""How fast optimizers bring a loss down."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.viz.style import BLUE, GREEN, GREY, LABEL, PURPLE, VERMILLION, new_figure, tidy

# In the order of the curves.
LINES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "-", "linewidth": 2.2},
    {"color": GREY, "linestyle": ":", "linewidth": 1.5},
    {"color": GREEN, "linestyle": "-.", "linewidth": 1.5},
    {"color": PURPLE, "linestyle": (0, (1, 1)), "linewidth": 1.5},
    {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
)
LOWEST = 0.5  # of a mean: how far down a band that reaches zero is drawn


def learning_curves(curves: Mapping[str, tuple[Tensor, Tensor]], optimizees: int, title: str = "Learning") -> Figure:
    """The mean over optimizees as a line, its 95 % confidence interval as a band; a logarithmic axis.

    Args:
        curves: for each of up to five optimizers its mean loss `(S,)` after 0, 1, ... steps, and the half-width `(S,)`
            of the interval.
        optimizees: how many the means are taken over.
        title: what was optimized.
    """
    figure = new_figure(6.4, 4.2, f"{title}\nmean and 95 % interval over {optimizees} optimizees")
    axes = figure.subplots()
    for (name, (mean, ci95)), line in zip(curves.items(), LINES, strict=False):
        mean, ci95 = mean.cpu(), ci95.cpu().nan_to_num(0)  # a single optimizee has no interval
        steps = range(len(mean))
        low = (mean - ci95).maximum(LOWEST * mean)
        axes.fill_between(steps, low, mean + ci95, color=line["color"], alpha=0.15, linewidth=0)
        axes.plot(steps, mean, label=name, **line)
    axes.set_yscale("log")
    # A diverging curve must not hide the others.
    start = float(max(mean[0] for mean, _ in curves.values()))
    lowest = min(float(mean[mean.isfinite()].min()) for mean, _ in curves.values())
    axes.set_ylim(LOWEST * lowest, 3 * start)
    tidy(axes, "steps", "loss")
    axes.legend(frameon=False, fontsize=LABEL)
    return figure
