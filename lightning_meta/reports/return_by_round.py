"""Does each round of adaptation earn more than the one before it? The return by round."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_meta.core import mean_and_ci95_over
from lightning_meta.datamodules.trials.rollouts import Rollouts
from lightning_meta.modules.rollout import RolloutModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, Curve, new_figure, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested


class ReturnByRound(Report):
    """The return of every round on the first test tasks, from before adaptation to after the last.

    Writes `<log_dir>/return_by_round.csv` (round, return, return_ci95) and the picture `return_by_round`. For any
    `RolloutModule` where there are rounds.

    Args:
        tasks: how many, at most `test_episodes`.
    """

    def __init__(self, tasks: int = 200) -> None:
        super().__init__(tasks=tasks)
        self.tasks = tasks

    def applies(self, tested: Tested) -> bool:
        rounds = isinstance(tested.data, Rollouts) and tested.data.eval_rounds > 0
        return rounds and isinstance(tested.module, RolloutModule)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        ids, size, parts = tested.first(self.tasks), tested.data.eval_meta_batch_size, []
        for start in range(0, len(ids), size):
            trials = tested.to_device(tested.data.dataset("test").__getitems__(ids[start : start + size]))
            parts.append(torch.stack([played.rewards.sum(1).mean(1) for played in tested.module.record(trials)], dim=1))
        curve = mean_and_ci95_over(torch.cat(parts).double().cpu())
        write_csv(log_dir / "return_by_round.csv", rows_of({"return": curve}, "round", "_ci95"))
        return {"return_by_round": return_by_round(curve, len(ids), tested.title)}


def return_by_round(curve: Curve, tasks: int, title: str) -> Figure:
    """A point for each round, with its 95 % interval.

    Args:
        curve: mean `(R,)` and half-width of the interval `(R,)`.
        tasks: how many the means are taken over.
        title: of the picture.
    """
    mean, ci95 = (part.nan_to_num(0).tolist() for part in curve)
    figure = new_figure(5.2, 3.8, f"{title}\nmean and 95 % interval over {tasks} tasks")
    axes = figure.subplots()
    axes.errorbar(range(len(mean)), mean, ci95, color=BLUE, marker="o", markersize=4, capsize=3, linewidth=1.5)
    tidy(axes, "rounds of adaptation before", "return")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
