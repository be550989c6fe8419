"""Accuracy against confidence, after figure 1 of Guo et al. (2017), arXiv:1706.04599."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.viz.style import BLUE, GREY, INK, SMALL, VERMILLION, new_figure, tidy


def reliability_diagram(
    count: Tensor, confidence: Tensor, right: Tensor, error: float, title: str = "Calibration"
) -> Figure:
    """Above, the accuracy of each of B bins of equal width against its mean confidence; below, where the examples are.

    Args:
        count: examples in each bin `(B,)`; a bin without any is left out.
        confidence: sum of their confidences `(B,)`.
        right: how many of them are classified rightly `(B,)`.
        error: expected calibration error.
        title: what was tested.
    """
    total = count.sum()
    sure, correct = confidence.sum() / total, right.sum() / total
    summary = f"accuracy {correct:.1%}, mean confidence {sure:.1%}\nexpected calibration error {error:.4f}"
    figure = new_figure(6.0, 6.2, f"{title}\n{summary}")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges, width = torch.linspace(0, 1, len(count) + 1)[:-1], 1 / len(count)
    filled = count > 0
    mean_confidence, accuracy = (sums[filled] / count[filled] for sums in (confidence, right))
    above.bar(edges[filled], accuracy, width, align="edge", color=BLUE, alpha=0.35, edgecolor=BLUE, linewidth=0.8)
    above.vlines(mean_confidence, mean_confidence, accuracy, color=VERMILLION, linewidth=2, label="gap")
    above.scatter(mean_confidence, accuracy, color=BLUE, s=22, zorder=3, label="bin: accuracy at mean confidence")
    above.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="calibrated")
    tidy(above, "", "accuracy")
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
    below.bar(edges, count, width, align="edge", color=GREY, alpha=0.6, edgecolor=GREY, linewidth=0.8)
    below.set_yscale("log")  # most bins hold few examples of a good classifier
    tidy(below, "confidence: the largest softmax probability", "examples")
    return figure
