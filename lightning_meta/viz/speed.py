"""How many times as fast ours is as each peer."""

from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.figure import Figure

from lightning_meta.viz.style import BLUE, GREY, INK, SMALL, VERMILLION, new_figure, tidy

COLOURS = {"plain": GREY, "learn2learn": BLUE, "higher": VERMILLION, "torchopt": INK}


def speed_ratios(cells: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """For each cell and peer the median ratio of step times, with the range over the alternations.

    Args:
        cells: ratios of each alternation, by name of the cell and name of the peer.
    """
    figure = new_figure(9, 1.2 + 0.32 * len(cells), "Outer steps per second, as a multiple of each peer's")
    axes = figure.subplots()
    for peer, colour in COLOURS.items():
        raced = [(place, ratios[peer]) for place, ratios in enumerate(cells.values()) if peer in ratios]
        if not raced:
            continue
        places, middles = [place for place, _ in raced], [median(ratios) for _, ratios in raced]
        spread = [
            [middle - min(ratios) for middle, (_, ratios) in zip(middles, raced, strict=True)],
            [max(ratios) - middle for middle, (_, ratios) in zip(middles, raced, strict=True)],
        ]
        axes.errorbar(middles, places, xerr=spread, fmt="o", color=colour, capsize=2, markersize=5, label=peer)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    tidy(axes, "times as fast (log scale)")
    axes.set_yticks(range(len(cells)), list(cells), fontsize=SMALL)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.legend(fontsize=SMALL, frameon=False)
    return figure
