"""Does an algorithm that reads a stream learn faster than a fit from scratch?"""

from pathlib import Path

import torch
from torch import Tensor

from lightning_meta.algorithms.memory.hochreiter import LSTMLearner
from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.callbacks.tables import write_csv
from lightning_meta.core import Batch, mean_and_ci95
from lightning_meta.datamodules.functions.quadratics import MEAN, QuadraticSource, monomials
from lightning_meta.viz import sequence_error


class SequenceError(Pictures):
    """The error at each example of test streams, against least squares fits of a quadratic to the examples before it.

    Writes `<log_dir>/sequence_error.csv` (examples seen, and for each learner its error and half-width of the interval)
    and the picture `sequence_error`. Fits are of minimum norm while there are fewer examples than coefficients: the
    plain one knows nothing of the functions, the centred one that their mean is 1/2, which makes it the best linear
    prediction there is. For `LSTMLearner` on `Quadratics`; anything else is skipped without a word.

    Args:
        episodes: how many test episodes, at most `test_episodes`.
    """

    def __init__(self, episodes: int = 1000) -> None:
        super().__init__()
        self.episodes = episodes

    def draw(self, replay: Replay, log_dir: Path) -> None:
        module, data = replay.module, replay.datamodule
        if not isinstance(module, LSTMLearner) or not isinstance(data.sources["test"], QuadraticSource):
            return
        count = min(self.episodes, data.test_episodes)
        support = replay.episodes(range(count)).support
        streams = module.adapt_tasks(support)
        preds = {
            type(module).__name__: streams.preds,
            "least squares": least_squares(support),
            "least squares, centred": MEAN + least_squares(support._replace(y=support.y - MEAN)),
        }
        curves = {}
        for name, preds_TS1 in preds.items():
            errors_TS = (preds_TS1 - support.y).double().square().squeeze(-1)
            curves[name] = mean_and_ci95(errors_TS.sum(0), errors_TS.square().sum(0), torch.tensor(count))
        rows: list[dict[str, float]] = [{"examples_seen": seen} for seen in range(support.y.shape[1])]
        for name, curve in curves.items():
            for row, mean, ci95 in zip(rows, *(values.tolist() for values in curve), strict=True):
                row |= {name: mean, f"{name} ci95": ci95}
        write_csv(log_dir / "sequence_error.csv", rows)
        self.save(sequence_error(curves, count, replay.title), "sequence_error", replay, log_dir)


def least_squares(stream: Batch) -> Tensor:
    """Predictions `(T, S, 1)` for each point of T streams by the minimum-norm quadratic through those before."""
    terms_TSC, y_TS1 = monomials(stream.x.double()), stream.y.double()
    preds = [torch.zeros_like(y_TS1[:, 0])]
    for n in range(1, y_TS1.shape[1]):
        coefficients_TC1 = torch.linalg.pinv(terms_TSC[:, :n]) @ y_TS1[:, :n]
        preds.append((terms_TSC[:, n, None] @ coefficients_TC1).squeeze(1))
    return torch.stack(preds, dim=1)
