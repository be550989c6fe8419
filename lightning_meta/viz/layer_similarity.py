"""How much adaptation changes each layer's representation, after Raghu et al. (2020), arXiv:1909.09157."""

from collections.abc import Sequence
from math import isnan

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.viz.style import BLUE, INK, SMALL, new_figure, tidy


def layer_similarity(
    layers: Sequence[str], mean: Tensor, ci95: Tensor, episodes: int, examples: int, title: str = "Adaptation"
) -> Figure:
    """A bar for each of L layers: mean CKA over episodes, with its 95 % confidence interval.

    Args:
        layers: names, from input to output.
        mean: CKA `(L,)`; NaN, where it is undefined, leaves a gap.
        ci95: half-width of the interval `(L,)`.
        episodes: how many episodes the means are taken over.
        examples: query examples in each of them.
        title: what was adapted.
    """
    mean, ci95 = mean.cpu(), ci95.cpu().nan_to_num(0)  # a single episode has no interval
    width = max(1.5 + 0.75 * len(layers), 6.5)  # inches; at least, for the title
    figure = new_figure(width, 4.2, f"{title}\nmean and 95 % interval over {episodes} episodes")
    axes = figure.subplots()
    places = range(len(layers))
    axes.bar(places, mean, width=0.6, color=BLUE)
    axes.errorbar(places, mean, yerr=ci95, fmt="none", ecolor=INK, elinewidth=1.2, capsize=4)
    for place, value, half_width in zip(places, mean.tolist(), ci95.tolist(), strict=True):
        if not isnan(value):
            top = max(value, 0) + half_width
            axes.annotate(
                f"{value:.3f}",
                (place, top),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=INK,
            )
    axes.set_xticks(places, layers)
    axes.set_ylim(min(0, float((mean - ci95).nan_to_num(0).min())), 1.1)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    note = f"debiased, as the usual estimate of CKA from {examples} query examples is too high"
    tidy(axes, f"layer, from input to output\n\n{note}", "CKA, before against after")
    axes.grid(axis="x", visible=False)
    return figure
