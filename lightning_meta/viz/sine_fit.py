"""Sine waves learned from a few points, after figure 2 of the MAML paper (arXiv:1703.03400)."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.viz.style import BLUE, GREY, INK, LABEL, VERMILLION, new_figure, tidy

# Fits in the order of their step counts: the later, the more visible. A longer list repeats the last.
LINES = (
    {"color": GREY, "linestyle": ":", "linewidth": 1.5},
    {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
    {"color": BLUE, "linestyle": "-", "linewidth": 2.0},
)


def sine_fits(
    x: Tensor, truth: Tensor, support: Batch, fits: Mapping[int, Tensor], title: str = "Sine waves"
) -> Figure:
    """One panel for each of T tasks: the true wave, its support points and the fits to them.

    Args:
        x: grid `(M,)`.
        truth: values of the true waves on the grid `(T, M)`.
        support: points `(T, K, 1)` and their values `(T, K, 1)`.
        fits: for each inner step count, predictions on the grid `(T, M)`.
        title: what was adapted.
    """
    n_tasks = len(truth)
    width = max(3.2 * n_tasks, 5.5)  # inches
    figure = new_figure(width, 3.9, title)
    panels = figure.subplots(1, n_tasks, squeeze=False, sharey=True)[0]
    for task, axes in enumerate(panels):
        axes.plot(x, truth[task], color=INK, linewidth=1.2, label="true wave")
        for i, (steps, fit) in enumerate(sorted(fits.items())):
            axes.plot(x, fit[task], **LINES[min(i, len(LINES) - 1)], label=_name(steps))
        axes.scatter(support.x[task], support.y[task], color=INK, marker="^", s=36, zorder=3, label="support points")
        tidy(axes, "x", "y" if task == 0 else "")
    reach = 1.4 * max(float(truth.abs().max()), 1.0)  # a diverging fit leaves the panel and does not flatten the waves
    panels[0].set_ylim(-reach, reach)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), int(width / 1.9))  # inches for the longest entry
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=LABEL)
    return figure


def _name(steps: int) -> str:
    return "before adaptation" if steps == 0 else f"{steps} step" + "s" * (steps > 1)
