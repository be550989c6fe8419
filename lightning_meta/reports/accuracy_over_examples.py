"""How many more queries are right with every example that is read, in new tasks and in those of training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from lightning_meta.core import Batch, Episode
from lightning_meta.core.statistics import mean_and_ci95_over
from lightning_meta.datamodules.episodes import EpisodeDataset
from lightning_meta.datamodules.images.projected import ProjectedSource
from lightning_meta.metrics import EpisodicAccuracy, EpisodicMean
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, LABEL, VERMILLION, Curve, new_figure, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested

POINTS = 10  # of a curve, at most
NEW, TRAINED = "new tasks", "tasks of training"


class AccuracyOverExamples(Report):
    """The accuracy by the number of examples, on `ProjectedImages`.

    Where training had a number of tasks, these are played too, with the images of the test: who knows them by heart is
    good at them from the first example on, and at no others. Logs `test/trained_tasks_acc` with its `_ci95`, from as
    many episodes as the test has. Writes `<log_dir>/accuracy_over_examples.csv` and the picture
    `accuracy_over_examples`.

    Args:
        episodes: of the picture, at most `test_episodes`.
    """

    def __init__(self, episodes: int = 200) -> None:
        super().__init__(episodes=episodes)
        self.episodes = episodes
        self.score = EpisodicMean()

    def applies(self, tested: Tested) -> bool:
        return tested.draws_from(ProjectedSource) and tested.classifies

    def begin(self, tested: Tested) -> None:
        self.score = EpisodicMean().to(tested.module.device)

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        if trained := of_training(tested):
            tasks = tested.to_device(trained.__getitems__(ids))
            self.score.update(EpisodicAccuracy.per_episode(tested.play(tasks).preds, tasks.query.y))

    def conclude(self, tested: Tested) -> None:
        if of_training(tested):
            tested.log("trained_tasks_acc", *self.score.compute())  # summed over ranks by torchmetrics

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        ids = tested.first(self.episodes)
        played = {NEW: tested.episodes(ids)}
        if trained := of_training(tested):
            played[TRAINED] = tested.to_device(trained.__getitems__(ids))
        most = played[NEW].support.x.shape[1]
        sizes = sorted({round(most ** (place / (POINTS - 1))) for place in range(POINTS)})
        curves: dict[str, Curve] = {}
        for name, (support, query) in played.items():
            few = (Batch(support.x[:, :n], support.y[:, :n]) for n in sizes)
            acc = [EpisodicAccuracy.per_episode(tested.play(Episode(part, query)).preds, query.y) for part in few]
            curves[name] = mean_and_ci95_over(torch.stack(acc, dim=1).cpu())
        rows = rows_of(curves, "examples", " ci95")
        rows = [row | {"examples": n} for row, n in zip(rows, sizes, strict=True)]
        write_csv(log_dir / "accuracy_over_examples.csv", rows)
        figure = accuracy_over_examples(curves, sizes, 1 / tested.data.n_way, len(ids), tested.title)
        return {"accuracy_over_examples": figure}


def of_training(tested: Tested) -> EpisodeDataset | None:
    """Episodes of the tasks of training with the images of the test; None where there is no end of them."""
    keys = tested.data.trained_tasks()
    if keys is None:
        return None
    dataset: EpisodeDataset = tested.data.dataset("test")
    source: Any = dataset.source
    dataset.source = replace(source, task_keys=keys)
    return dataset


def accuracy_over_examples(
    curves: Mapping[str, Curve], sizes: Sequence[int], chance: float, episodes: int, title: str = "Classification"
) -> Figure:
    """The mean over episodes as a line, its 95 % confidence interval as a band.

    Args:
        curves: accuracies `(S,)` of new tasks, and of those of training.
        sizes: the numbers of examples.
        chance: accuracy of guessing.
        episodes: how many episodes the means are taken over.
    """
    figure = new_figure(6.4, 4.2, f"{title}\nmean and 95 % interval over {episodes} episodes")
    axes = figure.subplots()
    lines = {NEW: (BLUE, "-"), TRAINED: (VERMILLION, "--")}
    for name, (mean, ci95) in curves.items():
        (colour, line), ci95 = lines[name], ci95.nan_to_num(0)  # one of a kind has no interval
        axes.fill_between(sizes, 100 * (mean - ci95), 100 * (mean + ci95), color=colour, alpha=0.2, linewidth=0)
        axes.plot(sizes, 100 * mean, label=name, color=colour, linestyle=line, linewidth=2)
    axes.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1.2, label="guessing")
    axes.set_xscale("log")
    axes.set_xticks(sizes, labels=[*map(str, sizes)])
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=LABEL, loc="lower right")
    tidy(axes, "examples in context", "accuracy at a query (%)")
    return figure
