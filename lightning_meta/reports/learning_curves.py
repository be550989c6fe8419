"""Is the learned optimizer better than those that were designed, each at its best?"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import SGD, Adam, Momentum, RMSprop, mean_and_ci95_over
from lightning_meta.datamodules.optimizees.optimizees import OptimizeeDataModule, Segment
from lightning_meta.modules import TruncatedModule
from lightning_meta.ranks import gather
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREEN, GREY, PURPLE, VERMILLION, Curve, curves_with_bands, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested

log = logging.getLogger(__name__)

Baseline = SGD | Momentum | RMSprop | Adam

BASELINES: Mapping[str, Callable[[float], Baseline]] = {
    "SGD": SGD,
    "NAG": partial(Momentum, nesterov=True),
    "RMSprop": RMSprop,
    "Adam": Adam,
}
RATES = tuple(10 ** (k / 4) for k in range(-12, 7))
# In the order of the curves.
LINES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "-", "linewidth": 2.2},
    {"color": GREY, "linestyle": ":", "linewidth": 1.5},
    {"color": GREEN, "linestyle": "-.", "linewidth": 1.5},
    {"color": PURPLE, "linestyle": (0, (1, 1)), "linewidth": 1.5},
    {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
)


class LearningCurves(Report):
    """Losses of the learned optimizer on the test optimizees, step by step, against SGD, NAG, RMSprop and Adam.

    Each baseline has the learning rate from a grid, the same for all, with which its mean final loss is smallest on
    validation optimizees; its other settings are torch's defaults, momentum 0.9 for NAG.

    Logs for each baseline, say adam, `test/adam_final_loss` and `test/adam_lr`, and `test/below_adam`: how much lower
    the learned optimizer's final loss is, paired by optimizee. Writes `<log_dir>/learning_curves.csv` (step, and for
    each optimizer its mean loss and half-width of the interval), `<log_dir>/learning_rates.csv` (the search), and the
    picture `learning_curves`. For `TruncatedModule`.

    Args:
        tuning_episodes: how many validation optimizees, at most `val_episodes`.
        rates: the grid of learning rates.
    """

    def __init__(self, tuning_episodes: int = 100, rates: Sequence[float] = RATES) -> None:
        super().__init__(tuning_episodes=tuning_episodes)
        self.tuning_episodes, self.rates = tuning_episodes, tuple(rates)
        self.search: list[dict[str, Any]] = []
        self.baselines: dict[str, Baseline] = {}
        self.losses: dict[str, list[Tensor]] = {}  # by optimizer: (T, S + 1) of each batch
        self.curves: dict[str, Curve] = {}
        self.count = 0  # of optimizees that they are the means of

    def applies(self, tested: Tested) -> bool:
        return isinstance(tested.module, TruncatedModule) and isinstance(tested.data, OptimizeeDataModule)

    def begin(self, tested: Tested) -> None:
        """Every rank searches for itself, with the same result."""
        self.search, self.baselines, self.losses, self.curves = [], {}, {}, {}
        data = tested.data
        ids, size = range(min(self.tuning_episodes, data.val_episodes)), data.eval_meta_batch_size
        tasks = [data.dataset("val").__getitems__(ids[i : i + size]) for i in range(0, len(ids), size)]
        self._search(tested.module, [tested.to_device(part) for part in tasks])

    def _search(self, module: TruncatedModule, tasks: Sequence[Segment]) -> None:
        """Set `baselines` to those with the best learning rates on `tasks`."""
        for name, make in BASELINES.items():
            losses = []
            for rate in self.rates:
                final_T = torch.cat([module.optimize(part, make(rate))[:, -1] for part in tasks])
                losses.append(final_T.double().mean().nan_to_num(torch.inf, torch.inf).item())
                self.search.append({"optimizer": name, "lr": rate, "final_loss": losses[-1]})
            best = losses.index(min(losses))
            if best in (0, len(losses) - 1):
                log.warning(
                    "%s is best with the learning rate %.3g, the end of the grid; give %s more `rates`.",
                    name, self.rates[best], type(self).__name__,
                )  # fmt: skip
            self.baselines[name] = make(self.rates[best])

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        self.losses.setdefault(type(tested.module).__name__, []).append(outputs["losses"])
        for name, baseline in self.baselines.items():
            self.losses.setdefault(name, []).append(tested.module.optimize(batch, baseline))

    def conclude(self, tested: Tested) -> None:
        mine = {name: torch.cat(parts).double().cpu() for name, parts in self.losses.items()}
        parts = gather(mine)  # a rank without optimizees has none
        losses = {name: torch.cat([part[name] for part in parts if part]) for name in next(filter(None, parts))}
        self.curves = {name: mean_and_ci95_over(losses_TS) for name, losses_TS in losses.items()}
        self.count = len(next(iter(losses.values())))
        ours_TS = losses.pop(type(tested.module).__name__)
        for name, losses_TS in losses.items():
            mean_S, ci95_S = self.curves[name]
            tested.log(f"{name.lower()}_final_loss", mean_S[-1], ci95_S[-1])
            tested.log(f"below_{name.lower()}", *mean_and_ci95_over(losses_TS[:, -1] - ours_TS[:, -1]))
            tested.log(f"{name.lower()}_lr", cast(float, self.baselines[name].lr))

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        write_csv(log_dir / "learning_curves.csv", rows_of(self.curves, "step", " ci95"))
        write_csv(log_dir / "learning_rates.csv", self.search)
        title = f"{tested.name}\n{tested.data.describe('test')}"
        return {"learning_curves": learning_curves(self.curves, self.count, title)}


def learning_curves(curves: Mapping[str, Curve], optimizees: int, title: str = "Learning") -> Figure:
    """The mean over optimizees as a line, its 95 % confidence interval as a band; a logarithmic axis.

    Args:
        curves: for each of up to five optimizers its loss `(S,)` after 0, 1, ... steps.
        optimizees: how many the means are taken over.
    """
    figure = curves_with_bands(f"{title}\nmean and 95 % interval over {optimizees} optimizees", curves, LINES)
    (axes,) = figure.axes
    # A diverging curve must not hide the others.
    start = float(max(mean[0] for mean, _ in curves.values()))
    lowest = min(float(mean[mean.isfinite()].min()) for mean, _ in curves.values())
    axes.set_ylim(lowest / 2, 3 * start)
    tidy(axes, "steps", "loss")
    return figure
