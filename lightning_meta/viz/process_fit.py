"""Functions predicted from a few points, beside the best that can be said of them."""

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.viz.style import BLUE, INK, LABEL, VERMILLION, new_figure, tidy

COLUMNS = 2


def process_fits(x: Tensor, truth: Tensor, support: Batch, fits: Tensor, title: str = "Gaussian processes") -> Figure:
    """One panel for each of T tasks: two means with their bands of two standard deviations, and the support points.

    Args:
        x: grid `(M,)`.
        truth: mean and standard deviation of the true posterior on the grid `(T, M, 2)`.
        support: points `(T, K, 1)` and their values `(T, K, 1)`.
        fits: predictions likewise `(T, M, 2)`.
        title: what was tested.
    """
    rows = -(-len(truth) // COLUMNS)
    figure = new_figure(9.0, 1.2 + 2.4 * rows, f"{title}\nbands: two standard deviations of a noisy value")
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).flatten()
    for task, axes in enumerate(panels[: len(truth)]):
        mean, std = truth[task].unbind(-1)
        axes.plot(x, mean, color=VERMILLION, linestyle="--", linewidth=1.5, label="true posterior")
        for edge in (mean - 2 * std, mean + 2 * std):
            axes.plot(x, edge, color=VERMILLION, linestyle=":", linewidth=1.0)
        mean, std = fits[task].unbind(-1)
        axes.fill_between(x, mean - 2 * std, mean + 2 * std, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(x, mean, color=BLUE, linewidth=1.8, label="prediction")
        axes.scatter(support.x[task], support.y[task], color=INK, marker="^", s=30, zorder=3, label="support points")
        tidy(axes, "x" if task >= len(truth) - COLUMNS else "", "y" if task % COLUMNS == 0 else "")
    for axes in panels[len(truth) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=LABEL)
    return figure
