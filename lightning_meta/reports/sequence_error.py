"""Does an algorithm that reads a stream learn faster than a fit from scratch? The error at each example."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.algorithms.memory.hochreiter import LSTMLearner
from lightning_meta.core import Batch, mean_and_ci95_over
from lightning_meta.datamodules.functions.quadratics import MEAN, QuadraticSource, monomials
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, VERMILLION, Curve, curves_with_bands, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested

# In the order of the curves.
LINES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "-", "linewidth": 2.0},
    {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
    {"color": GREY, "linestyle": ":", "linewidth": 1.5},
)
SMALLEST = 1e-8  # squared error below which a fit is as good as exact: leaves the panel


class SequenceError(Report):
    """The error at each example of test streams, against least squares fits of a quadratic to the examples before it.

    Writes `<log_dir>/sequence_error.csv` (examples seen, and for each learner its error and half-width of the interval)
    and the picture `sequence_error`. Fits are of minimum norm while there are fewer examples than coefficients: the
    plain one knows nothing of the functions, the centred one that their mean is 1/2, which makes it the best linear
    prediction there is. For `LSTMLearner` on `Quadratics`.

    Args:
        episodes: how many test episodes, at most `test_episodes`.
    """

    def __init__(self, episodes: int = 1000) -> None:
        super().__init__(episodes=episodes)
        self.episodes = episodes

    def applies(self, tested: Tested) -> bool:
        return isinstance(tested.module, LSTMLearner) and tested.draws_from(QuadraticSource)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module, ids = tested.module, tested.first(self.episodes)
        support = tested.episodes(ids).support
        preds = {
            type(module).__name__: module.adapt_tasks(support).preds,
            "least squares": least_squares(support),
            "least squares, centred": MEAN + least_squares(support._replace(y=support.y - MEAN)),
        }
        errors_TS = {name: (preds_TS1 - support.y).double().square().squeeze(-1) for name, preds_TS1 in preds.items()}
        curves = {name: mean_and_ci95_over(errors) for name, errors in errors_TS.items()}
        write_csv(log_dir / "sequence_error.csv", rows_of(curves, "examples_seen", " ci95"))
        return {"sequence_error": sequence_error(curves, len(ids), tested.title)}


def least_squares(stream: Batch) -> Tensor:
    """Predictions `(T, S, 1)` for each point of T streams by the minimum-norm quadratic through those before."""
    terms_TSC, y_TS1 = monomials(stream.x.double()), stream.y.double()
    preds = [torch.zeros_like(y_TS1[:, 0])]
    for n in range(1, y_TS1.shape[1]):
        coefficients_TC1 = torch.linalg.pinv(terms_TSC[:, :n]) @ y_TS1[:, :n]
        preds.append((terms_TSC[:, n, None] @ coefficients_TC1).squeeze(1))
    return torch.stack(preds, dim=1)


def sequence_error(curves: Mapping[str, Curve], episodes: int, title: str = "Learning") -> Figure:
    """The mean over episodes as a line, its 95 % confidence interval as a band; a logarithmic axis.

    Args:
        curves: for each of up to three learners, its squared error `(S,)` at each example of a sequence, predicted from
            those before it.
        episodes: how many episodes the means are taken over.
    """
    figure = curves_with_bands(f"{title}\nmean and 95 % interval over {episodes} episodes", curves, LINES)
    (axes,) = figure.axes
    axes.set_ylim(bottom=max(SMALLEST, 0.3 * float(min(mean[mean > SMALLEST].min() for mean, _ in curves.values()))))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, "examples seen", "mean squared error at the next example")
    return figure
