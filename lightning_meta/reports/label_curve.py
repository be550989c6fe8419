"""How good is a network after so many labels?"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.algorithms.bilevel.active_learning import ActiveLearning
from lightning_meta.compat import tree_map
from lightning_meta.core.statistics import mean_and_t95
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, new_figure, tidy
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested


class LabelCurve(Report):
    """Accuracy on all test examples over the number of labels, with a 95 % interval over trainings.

    Every training is repeated with the labels of each round, as it was; so a test takes as long as the training did
    without its choices. Logs `test/acc_<labels>`, writes `<log_dir>/label_curve.csv` and the picture `label_curve`. For
    `ActiveLearning`.

    Args:
        logged: for which numbers of labels the accuracy is logged, where a round has so many.
    """

    def __init__(self, logged: tuple[int, ...] = (50, 100, 200)) -> None:
        super().__init__()
        self.logged = logged
        self.acc_of: dict[int, Tensor] = {}  # labels -> accuracies of the trainings `(T,)`

    def applies(self, tested: Tested) -> bool:
        return isinstance(tested.module, ActiveLearning) and isinstance(tested.data, BilevelDataModule)

    @torch.no_grad()
    def conclude(self, tested: Tested) -> None:
        module, self.acc_of = tested.module, {}
        if module.judged is None:
            return
        judges = tested.to_device(tested.data.judges("test"))
        for labels in range(module.start, module.labels + 1, module.per_round):
            accuracies = []
            for start_weights, order_L in module.beginnings():
                if int((order_L >= 0).sum()) < labels:
                    continue
                weights = module.trained(
                    start_weights, torch.where(torch.arange(len(order_L)).to(order_L) < labels, order_L, -1)
                )
                accuracies.append((module.logits(weights, judges.x).argmax(1) == judges.y).double().mean())
            if accuracies:
                self.acc_of[labels] = torch.stack(accuracies).cpu()
        for labels in self.acc_of.keys() & {*self.logged}:
            mean, ci95 = mean_and_t95(self.acc_of[labels])
            tested.log(f"acc_{labels}", mean, torch.tensor(ci95))

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        if not self.acc_of:
            return {}
        curve = {labels: mean_and_t95(values) for labels, values in self.acc_of.items()}
        rows = [{"labels": labels, "acc": mean, "acc_ci95": ci95} for labels, (mean, ci95) in curve.items()]
        write_csv(log_dir / "label_curve.csv", rows)
        return {"label_curve": label_curve(self.acc_of, f"{tested.name}: {tested.module.acquire}")}


def label_curve(acc_of: dict[int, Tensor], title: str) -> Figure:
    """The mean as a line and its interval as a band, in per cent."""
    figure = new_figure(6.4, 4.2, title)
    axes = figure.subplots()
    curve = tree_map(lambda value: 100 * value, [mean_and_t95(values) for values in acc_of.values()])
    means, halves = (torch.tensor(part).nan_to_num(0) for part in zip(*curve, strict=True))
    labels = list(acc_of)
    axes.fill_between(labels, means - halves, means + halves, color=BLUE, alpha=0.2, lw=0)
    axes.plot(labels, means, color=BLUE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, "labels", "accuracy on test examples (%)")
    return figure
