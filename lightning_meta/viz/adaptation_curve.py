"""How the query loss and score change with every adaptation step."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.viz.style import BLUE, SMALL, VERMILLION, new_figure, tidy

Y_LABELS = {
    "loss": "query loss",
    "acc": "query accuracy (fraction)",
    "mse": "query mean squared error",
}


def adaptation_curve(
    steps: Sequence[int],
    curves: Mapping[str, tuple[Tensor, Tensor]],
    episodes: int,
    inner_steps: int | None = None,
    title: str = "Adaptation",
) -> Figure:
    """One panel for each curve: the mean over episodes as a line, its 95 % confidence interval as a band.

    Args:
        steps: the S inner step counts, one for each point.
        curves: for each name (`loss`, `acc`, ...) its mean `(S,)` and half-width of the interval `(S,)`.
        episodes: how many episodes the means are taken over.
        inner_steps: marked by a vertical line: how many steps training takes.
        title: what was adapted.
    """
    figure = new_figure(4.6 * len(curves), 3.8, f"{title}\nmean and 95 % interval over {episodes} episodes")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, (mean, ci95)) in zip(panels, curves.items(), strict=True):
        mean, ci95 = mean.cpu(), ci95.cpu().nan_to_num(0)  # a single episode has no interval
        axes.fill_between(steps, mean - ci95, mean + ci95, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color=BLUE, marker="o", markersize=3.5, linewidth=1.5)
        tidy(axes, "inner steps", Y_LABELS.get(name, f"query {name}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if inner_steps is not None:
            axes.axvline(inner_steps, color=VERMILLION, linestyle="--", linewidth=1)
            axes.annotate(
                f"trained with {inner_steps}",
                (inner_steps, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=VERMILLION,
            )
    return figure
