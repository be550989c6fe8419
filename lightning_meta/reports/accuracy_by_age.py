"""What is forgotten of a stream: the accuracy of a class by when it was seen last. After figure 3 of the OML paper.

Javed, White: "Meta-Learning Representations for Continual Learning" (2019), arXiv:1905.12588.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.algorithms.continual.online import Online
from lightning_meta.metrics import EpisodicMean
from lightning_meta.modules import StreamClassifierModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, INK, LABEL, Curve, new_figure, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested


class AccuracyByAge(Report):
    """Accuracy on the classes of a stream, from the one that was seen last the longest ago to the newest.

    From all test episodes. Writes `<log_dir>/accuracy_by_age.csv` and the picture `accuracy_by_age`. For classifiers
    that learn one example after another: `Online`, `OML`, `ANML`, and those that read: `DeltaNet`, `SRWM`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[EpisodicMean] = []  # of the oldest class, the one after it, ...

    def applies(self, tested: Tested) -> bool:
        return tested.classifies and isinstance(tested.module, Online | StreamClassifierModule)

    def begin(self, tested: Tested) -> None:
        n_way = tested.data.shapes["test"].n_way
        self.scores = [EpisodicMean().to(tested.module.device) for _ in range(n_way)]

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        values_TC = by_age(outputs["preds"], batch.query.y, batch.support.y, len(self.scores))
        for score, values_T in zip(self.scores, values_TC.unbind(1), strict=True):
            score.update(values_T)

    def conclude(self, tested: Tested) -> None:
        for score in self.scores:
            score.compute()  # sums over ranks, which keeps the result for the picture

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        mean, ci95 = zip(*(score.compute() for score in self.scores), strict=True)
        curve = torch.stack(mean).cpu(), torch.stack(ci95).cpu()
        write_csv(log_dir / "accuracy_by_age.csv", rows_of({"acc": curve}, "age", " ci95"))
        return {"accuracy_by_age": accuracy_by_age(curve, tested.title)}


def by_age(preds: Tensor, y_TQ: Tensor, support_y_TS: Tensor, n_way: int) -> Tensor:
    """Accuracy `(T, C)` on the queries of each class, the classes in the order in which they were seen last.

    Args:
        preds: scores `(T, Q, C)`.
        y_TQ: labels of the queries.
        support_y_TS: labels of the stream.
        n_way: C.
    """
    classes = torch.arange(n_way, device=y_TQ.device)
    places_S = torch.arange(1, support_y_TS.shape[1] + 1, device=y_TQ.device)
    last_TC = ((support_y_TS[..., None] == classes) * places_S[:, None]).amax(1)
    there_TQC = y_TQ[..., None] == classes
    right_TQ1 = (preds.argmax(-1) == y_TQ)[..., None]
    accuracy_TC = (there_TQC & right_TQ1).sum(1) / there_TQC.sum(1)
    return accuracy_TC.gather(1, last_TC.argsort(1))


def accuracy_by_age(curve: Curve, title: str = "A stream of classes") -> Figure:
    """The mean over episodes as a line, its 95 % confidence interval as a band; chance as a line.

    Args:
        curve: accuracy `(C,)` from the oldest class to the newest.
    """
    mean, ci95 = 100 * curve[0], 100 * curve[1].nan_to_num(0)  # one of a kind has no interval
    n_way = len(mean)
    figure = new_figure(
        6.4, 4.2, f"{title}\nmean and 95 % interval over test episodes; all classes {mean.mean():.1f} %"
    )
    axes, places = figure.subplots(), range(1, n_way + 1)
    axes.fill_between(places, mean - ci95, mean + ci95, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(places, mean, color=BLUE, linewidth=2, marker="o", markersize=4)
    axes.axhline(100 / n_way, color=INK, linestyle="--", linewidth=1, label="chance")
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=LABEL)
    tidy(axes, "class, from the oldest to the one seen last", "accuracy (%)")
    return figure
