"""Runs side by side: each method's mean, and its paired difference from the first."""

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

from lightning_meta.viz.style import BLUE, GREY, SMALL, VERMILLION, new_figure, tidy


class Compared(Protocol):
    """One method; halves of 95 % intervals end with `_ci95`."""

    @property
    def method(self) -> str: ...
    @property
    def mean(self) -> float: ...
    @property
    def ci95(self) -> float: ...
    @property
    def difference(self) -> float | None: ...
    @property
    def difference_ci95(self) -> float | None: ...


def comparison(table: Sequence[Compared], metric: str) -> Figure:
    """Means with 95 % intervals over episodes at the left; at the right the differences from the first method.

    An interval of a difference that leaves out zero is drawn in vermillion. A method without a difference (the first,
    or one that was tested on other episodes) has no mark there.
    """
    names = [row.method.replace(" --", "\n--") for row in table]  # an option on each line
    lines = sum(name.count("\n") + 2 for name in names)
    figure = new_figure(11, 1.4 + 0.2 * lines, "Methods on frozen episodes, 95 % intervals")
    means, differences = figure.subplots(1, 2, sharey=True)
    scale, unit = (100, " (%)") if metric == "acc" else (1, "")
    for place, row in enumerate(table):
        means.errorbar(scale * row.mean, place, xerr=scale * row.ci95, fmt="o", color=BLUE, capsize=3, markersize=5)
        if row.difference is not None and row.difference_ci95 is not None:
            colour = VERMILLION if abs(row.difference) > row.difference_ci95 else GREY
            differences.errorbar(
                scale * row.difference, place, xerr=scale * row.difference_ci95, fmt="o", color=colour, capsize=3
            )
    differences.axvline(0, color=GREY, linewidth=1)
    tidy(means, f"{metric}{unit}")
    tidy(differences, f"difference from the first{unit}")
    means.set_yticks(range(len(table)), names, fontsize=SMALL)
    means.set_ylim(len(table) - 0.5, -0.5)
    return figure
