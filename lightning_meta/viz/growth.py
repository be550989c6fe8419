"""Cost of an outer step against its sizes."""

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from lightning_meta.viz.style import BLUE, GREY, LABEL, SMALL, VERMILLION, new_figure, tidy

COLUMNS = 3


class Grown(Protocol):
    """Seconds and MiB for each value of one size."""

    @property
    def size(self) -> str: ...
    @property
    def values(self) -> Sequence[int]: ...
    @property
    def seconds(self) -> Sequence[float]: ...
    @property
    def mib(self) -> Sequence[float]: ...


def growth_curves(curves: Sequence[Grown]) -> Figure:
    """A panel for each size, both axes logarithmic: time in blue, memory in vermillion, linear growth in grey."""
    rows = -(-len(curves) // COLUMNS)
    figure = new_figure(
        11, 0.6 + 2.7 * rows, "One outer step: time (blue), peak memory (vermillion), linear growth (grey)"
    )
    for place, curve in enumerate(curves):
        time = figure.add_subplot(rows, COLUMNS, place + 1)
        tidy(time, curve.size)
        milliseconds = [1000 * seconds for seconds in curve.seconds]
        time.plot(curve.values, milliseconds, "o-", color=BLUE, markersize=4)
        first, (last, end) = curve.values[0], (curve.values[-1], milliseconds[-1])
        time.plot([first, last], [end * first / last, end], color=GREY, linewidth=1, linestyle="--")
        memory = time.twinx()
        memory.plot(curve.values, curve.mib, "s-", color=VERMILLION, markersize=4)
        memory.tick_params(labelsize=SMALL, color=GREY)
        memory.spines[["top", "left"]].set_visible(False)
        for axes, values, unit, colour in ((time, milliseconds, "ms", BLUE), (memory, curve.mib, "MiB", VERMILLION)):
            axes.set_yscale("log")
            middle, reach = (min(values) * max(values)) ** 0.5, max(2 * (max(values) / min(values)) ** 0.5, 10)
            axes.set_ylim(middle / reach, middle * reach)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel(unit, fontsize=LABEL, color=colour)
        time.set_xscale("log")
        time.set_xticks(curve.values, [f"{value:,}" for value in curve.values])
        time.xaxis.set_minor_locator(NullLocator())
    return figure
