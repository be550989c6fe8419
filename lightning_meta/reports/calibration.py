"""Is a classifier as often right as it is sure? Accuracy against confidence, as in figure 1 of the paper.

Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, INK, SMALL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested


class Calibration(Report):
    """Expected calibration error over all queries of a test, logged as `test/ece`, and the picture `calibration`.

    The confidence of a prediction is the largest softmax probability; predictions are sorted by it into bins of equal
    width. The error is the mean gap between confidence and accuracy of a bin, weighted by the share of its examples.

    For classifiers: modules whose metric is accuracy. Their predictions are taken as logits, also the scores of
    methods that are not trained by a softmax (Relation Networks, Siamese networks): for these the error tells how far
    their scores are from being logits.

    Args:
        bins: how many.
    """

    def __init__(self, bins: int = 15) -> None:
        super().__init__(bins=bins)
        self.bins = bins
        self.sums = torch.empty(0)

    def applies(self, tested: Tested) -> bool:
        return tested.classifies

    def begin(self, tested: Tested) -> None:
        self.sums = torch.zeros(3, self.bins, dtype=torch.float64, device=tested.module.device)

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        self.sums += bin_sums(outputs["preds"], batch.query.y, self.bins)

    def conclude(self, tested: Tested) -> None:
        self.sums = tested.trainer.strategy.reduce(self.sums, reduce_op="sum")
        tested.log("ece", expected_calibration_error(self.sums))

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        error = expected_calibration_error(self.sums).item()
        count, confidence, right = self.sums.cpu()
        return {"calibration": reliability_diagram(count, confidence, right, error, tested.title)}


def bin_sums(logits: Tensor, targets: Tensor, bins: int) -> Tensor:
    """For each bin the number of examples, the sum of their confidences and the number of right ones, `(3, bins)`.

    Args:
        logits: `(..., C)`; -inf for a class that does not exist.
        targets: classes `(...)`.
        bins: of equal width, of which the first begins above 0 and the last ends with 1.
    """
    confidence, predicted = logits.detach().double().softmax(-1).flatten(0, -2).max(-1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    values = torch.stack([torch.ones_like(confidence), confidence, (predicted == targets.flatten()).double()])
    return torch.zeros(3, bins, dtype=torch.float64, device=logits.device).index_add(1, place, values)


def expected_calibration_error(sums: Tensor) -> Tensor:
    """From the sums of `bin_sums`, which add up over batches and ranks."""
    count, confidence, right = sums
    return (confidence - right).abs().sum() / count.sum()


def reliability_diagram(
    count: Tensor, confidence: Tensor, right: Tensor, error: float, title: str = "Calibration"
) -> Figure:
    """Above, the accuracy of each of B bins of equal width against its mean confidence; below, where the examples are.

    Args:
        count: examples in each bin `(B,)`; a bin without any is left out.
        confidence: sum of their confidences `(B,)`.
        right: how many of them are classified rightly `(B,)`.
        error: expected calibration error.
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
