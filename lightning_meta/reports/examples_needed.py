"""How many examples does a new task need? After figure 5 of the FTML paper (arXiv:1902.08438)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.metrics import EpisodicMean, EpisodicMetric
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, INK, LABEL, Curve, new_figure, tidy
from lightning_meta.reports.tested import Tested


class ExamplesNeeded(Report):
    """The metric on tasks of the test after 1, 2, ... support examples of each class, from all test episodes.

    For data whose training tasks arrive one after another. Where `data.arrivals.learned_at` says what the metric must
    reach, it logs `test/examples_needed`: the first number of examples with which it does, or one more than there are
    where it never does; and `test/learned`, the share of tasks where it does, each with its `_ci95`. Picture
    `examples_needed`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[EpisodicMetric] = []  # after 1, 2, ... examples
        self.needed, self.learned = EpisodicMean(), EpisodicMean()

    def applies(self, tested: Tested) -> bool:
        return tested.plays_episodes and tested.data.arrivals is not None and "stream" not in tested.data.needs

    def begin(self, tested: Tested) -> None:
        device = tested.module.device
        self.scores = [tested.module.metric.clone().to(device) for _ in range(tested.data.shapes["test"].k_shot)]
        self.needed, self.learned = EpisodicMean().to(device), EpisodicMean().to(device)

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        metric, arrivals = tested.module.metric, tested.data.arrivals
        n_way, few = tested.data.shapes["test"].n_way, range(1, len(self.scores))
        preds = [*(tested.play(fewer(batch, n_way, n)).preds for n in few), outputs["preds"]]
        values_KT = torch.stack([metric.per_episode(of_all, batch.query.y) for of_all in preds])
        for score, values_T in zip(self.scores, values_KT, strict=True):
            score.update(values_T)
        if arrivals.learned_at is not None:
            needed_T = first_within(values_KT, arrivals.learned_at, metric.mode)
            self.needed.update(needed_T)
            self.learned.update((needed_T <= len(values_KT)).double())

    def conclude(self, tested: Tested) -> None:
        if tested.data.arrivals.learned_at is not None:
            tested.log("examples_needed", *self.needed.compute())  # summed over ranks by torchmetrics
            tested.log("learned", *self.learned.compute())

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        mean, ci95 = (torch.stack(values).cpu() for values in zip(*(s.compute() for s in self.scores), strict=True))
        label = tested.module.metric.label(tested.module.metric.name)
        scale = tested.module.metric.scale
        learned_at = tested.data.arrivals.learned_at
        threshold = None if learned_at is None else scale * learned_at
        several = tested.data.shapes["test"].n_way > 1
        curve = (scale * mean, scale * ci95)
        return {"examples_needed": examples_needed(curve, label, threshold, tested.title, of_each_class=several)}


def fewer(episode: Episode, n_way: int, examples: int) -> Episode:
    """The first examples of each class; those of a class stand side by side."""
    x, y = (leaf.unflatten(1, (n_way, -1))[:, :, :examples].flatten(1, 2) for leaf in episode.support)
    return Episode(Batch(x, y), episode.query)


def first_within(values_KT: Tensor, bound: float, mode: str) -> Tensor:
    """After how many examples the metric first is as good as `bound`, `(T,)`; K + 1 where it never is."""
    good_KT = values_KT <= bound if mode == "min" else values_KT >= bound
    never = torch.ones_like(good_KT[:1])
    return torch.cat([good_KT, never]).int().argmax(0).double() + 1  # of equal ones the first


def examples_needed(
    curve: Curve, label: str, learned_at: float | None, title: str = "New tasks", of_each_class: bool = True
) -> Figure:
    """The mean over episodes as a line, its 95 % confidence interval as a band.

    Args:
        curve: of the metric `(K,)` after 1, ..., K examples.
        label: of the metric.
        learned_at: a line there.
        of_each_class: whether tasks have several classes.
    """
    mean, ci95 = curve[0], curve[1].nan_to_num(0)  # one of a kind has no interval
    figure = new_figure(6.4, 4.2, f"{title}\nmean and 95 % interval over test episodes")
    axes, examples = figure.subplots(), range(1, len(mean) + 1)
    axes.fill_between(examples, mean - ci95, mean + ci95, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(examples, mean, color=BLUE, linewidth=2, marker="o", markersize=4)
    if learned_at is not None:
        axes.axhline(learned_at, color=INK, linestyle="--", linewidth=1, label="learned")
        axes.legend(frameon=False, fontsize=LABEL)
    # What diverges on few examples leaves the panel, and does not flatten the others.
    reach = max(1.1 * (learned_at or 0.0), 4 * float(mean.median()), 1e-9)
    axes.set_ylim(0, min(1.05 * float((mean + ci95).max()), reach))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, f"examples of a new task{', of each class' if of_each_class else ''}", label)
    return figure
