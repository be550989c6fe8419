"""How much does each example in context help, and how much does it help who knows how to fit?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.core import Batch, Episode, mean_and_ci95_over
from lightning_meta.datamodules.functions.linear_functions import LinearFunctionSource
from lightning_meta.metrics import EpisodicMean, EpisodicMSE
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREEN, GREY, LABEL, VERMILLION, Curve, new_figure, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested

NEIGHBOURS = 3
# In the order of the curves.
LINES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "-", "linewidth": 2.0},
    {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
    {"color": GREEN, "linestyle": "-.", "linewidth": 1.5},
    {"color": GREY, "linestyle": ":", "linewidth": 1.5},
)


class ErrorOverExamples(Report):
    """The squared error by the number of support examples, beside estimators of linear functions.

    These are those of Garg et al. (2022), arXiv:2208.01066: least squares of minimum norm, the mean of the 3 nearest
    neighbours, and averaging, whose weights are the mean of x y. Logs `test/least_squares_mse`,
    `test/nearest_neighbours_mse` and `test/averaging_mse`, each with its `_ci95`, from all test episodes and all of
    their examples. Writes `<log_dir>/error_over_examples.csv` and the picture `error_over_examples`.

    Args:
        episodes: of the picture, at most `test_episodes`.
    """

    def __init__(self, episodes: int = 500) -> None:
        super().__init__(episodes=episodes)
        self.episodes = episodes
        self.scores: dict[str, EpisodicMean] = {}

    def applies(self, tested: Tested) -> bool:
        return tested.draws_from(LinearFunctionSource) and isinstance(tested.module.metric, EpisodicMSE)

    def begin(self, tested: Tested) -> None:
        self.scores = {name: EpisodicMean().to(tested.module.device) for name in ESTIMATORS}

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        for name, estimate in ESTIMATORS.items():
            preds = estimate(batch.support, batch.query.x)
            self.scores[name].update(EpisodicMSE.per_episode(preds, batch.query.y))

    def conclude(self, tested: Tested) -> None:
        for name, score in self.scores.items():
            tested.log(f"{name.replace(' ', '_')}_mse", *score.compute())  # summed over ranks by torchmetrics

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        ids = tested.first(self.episodes)
        support, query = tested.episodes(ids)
        errors: dict[str, list[Tensor]] = {name: [] for name in (type(tested.module).__name__, *ESTIMATORS)}
        for n in range(1, support.x.shape[1] + 1):
            few = Batch(support.x[:, :n], support.y[:, :n])
            preds = [tested.play(Episode(few, query)).preds]
            preds += [estimate(few, query.x) for estimate in ESTIMATORS.values()]
            for values, of_learner in zip(errors.values(), preds, strict=True):
                values.append(EpisodicMSE.per_episode(of_learner, query.y).cpu())
        curves = {name: mean_and_ci95_over(torch.stack(values, dim=1)) for name, values in errors.items()}
        rows = [row | {"examples": row["examples"] + 1} for row in rows_of(curves, "examples", " ci95")]
        write_csv(log_dir / "error_over_examples.csv", rows)
        return {"error_over_examples": error_over_examples(curves, len(ids), tested.title)}


def least_squares(support: Batch, x_TQD: Tensor) -> Tensor:
    """Predictions `(T, Q, 1)` by the linear functions through the examples; of minimum norm where there are several."""
    return x_TQD.double() @ (torch.linalg.pinv(support.x.double()) @ support.y.double())


def nearest_neighbours(support: Batch, x_TQD: Tensor) -> Tensor:
    """The mean value of the 3 nearest examples `(T, Q, 1)`, or of as many as there are."""
    distances_TQS = torch.cdist(x_TQD.double(), support.x.double())
    nearest_TQK = distances_TQS.topk(min(NEIGHBOURS, distances_TQS.shape[-1]), largest=False).indices
    values_TQS = support.y.double().mT.expand_as(distances_TQS)
    return values_TQS.gather(-1, nearest_TQK).mean(-1, keepdim=True)


def averaging(support: Batch, x_TQD: Tensor) -> Tensor:
    """Predictions `(T, Q, 1)` by the mean of x y, the weights for inputs of mean 0 and covariance 1."""
    x, y = support.x.double(), support.y.double()
    return x_TQD.double() @ (x.mT @ y / x.shape[1])


ESTIMATORS: dict[str, Callable[[Batch, Tensor], Tensor]] = {
    "least squares": least_squares, "nearest neighbours": nearest_neighbours, "averaging": averaging,
}  # fmt: skip


def error_over_examples(curves: Mapping[str, Curve], episodes: int, title: str = "Regression") -> Figure:
    """The mean over episodes as a line, its 95 % confidence interval as a band.

    Args:
        curves: for each of up to four learners, its squared error `(S,)` after 1, ..., S examples.
        episodes: how many episodes the means are taken over.
    """
    figure = new_figure(6.4, 4.2, f"{title}\nmean and 95 % interval over {episodes} episodes; predicting zero has 1")
    axes = figure.subplots()
    for (name, (mean, ci95)), line in zip(curves.items(), LINES, strict=False):
        examples, ci95 = range(1, len(mean) + 1), ci95.nan_to_num(0)  # one of a kind has no interval
        axes.fill_between(examples, mean - ci95, mean + ci95, color=line["color"], alpha=0.2, linewidth=0)
        axes.plot(examples, mean, label=name, **line)
    axes.set_ylim(0, 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=LABEL)
    tidy(axes, "examples in context", "mean squared error at a query")
    return figure
