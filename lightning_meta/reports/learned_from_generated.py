"""What are generated images worth? A classifier learns from them, and is asked about real ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.metrics import EpisodicAccuracy, EpisodicMean
from lightning_meta.reports.base import Report
from lightning_meta.reports.generated_images import support_and_generated
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, new_figure, tidy
from lightning_meta.reports.tested import Tested

SHOTS = ("support", "generated", "both")


class LearnedFromGenerated(Report):
    """Accuracy on the query images of logistic regression on pixels, learned from three sets of shots in turn.

    For modules with a method `generate`, on episodes of several classes. Logs `test/acc_from_support`,
    `test/acc_from_generated` and `test/acc_from_both`, and `test/acc_gained`, how much better both are than the support
    set alone in the same episodes, each with its `_ci95`. Picture `learned_from_generated`.

    Args:
        images: generated for each class.
        episodes: the first of the test's; a regression takes some ten milliseconds.
    """

    def __init__(self, images: int = 16, episodes: int = 200) -> None:
        super().__init__(images=images, episodes=episodes)
        self.images, self.episodes = images, episodes
        self.scores: dict[str, EpisodicMean] = {}

    def applies(self, tested: Tested) -> bool:
        return tested.generates and tested.data.shapes["test"].n_way > 1

    def begin(self, tested: Tested) -> None:
        names = (*(f"from_{shots}" for shots in SHOTS), "gained")
        self.scores = {name: EpisodicMean().to(tested.module.device) for name in names}

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        first = [place for place, number in enumerate(ids) if number < self.episodes]
        if not first:
            return
        tasks = tree_map(lambda leaf: leaf[first], batch)
        for t, (support, made) in enumerate(support_and_generated(tested, tasks, self.images)):
            query = tasks.query.x[t].float().cpu(), tasks.query.y[t].cpu()
            sets = {"support": support, "generated": made, "both": torch.cat([support, made], 1)}
            values = {f"from_{name}": accuracy(shots, *query) for name, shots in sets.items()}
            values["gained"] = values["from_both"] - values["from_support"]
            for name, value in values.items():
                self.scores[name].update(torch.tensor([value], device=tested.module.device))

    def conclude(self, tested: Tested) -> None:
        for name, score in self.scores.items():
            tested.log(f"acc_{name}", *score.compute())  # summed over ranks by torchmetrics

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        values = {shots: tuple(v.item() for v in self.scores[f"from_{shots}"].compute()) for shots in SHOTS}
        return {"learned_from_generated": bars(values, tested.title)}


def accuracy(shots_NM: Tensor, x_Q: Tensor, y_Q: Tensor) -> float:
    """Of logistic regression on the pixels of shots `(N, M, ...)`, row n of which are of class n."""
    labels = torch.arange(len(shots_NM)).repeat_interleave(shots_NM.shape[1])
    classifier = LogisticRegression(max_iter=200).fit(shots_NM.flatten(0, 1).flatten(1).numpy(), labels.numpy())
    return float(classifier.score(x_Q.flatten(1).numpy(), y_Q.numpy()))


def bars(values: Mapping[str, Sequence[float]], title: str = "Learned from generated images") -> Figure:
    """Mean accuracies with half of their intervals, by what was learned from."""
    figure = new_figure(6.0, 3.2, title)
    axes = figure.subplots()
    means, half_widths = zip(*((EpisodicAccuracy.scale * v for v in pair) for pair in values.values()), strict=True)
    places = range(len(means))
    axes.barh(places, means, xerr=half_widths, color=[GREY, BLUE, BLUE], alpha=0.6, ecolor=INK, capsize=3)
    axes.set_yticks(places, labels=list(values), fontsize=LABEL)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    tidy(axes, "accuracy on real queries (%), logistic regression on pixels", "learned from")
    return figure
