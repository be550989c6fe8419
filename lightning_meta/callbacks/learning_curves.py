"""Is the learned optimizer better than those that were designed, each at its best?"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import to_device
from lightning_meta.callbacks.tables import write_csv
from lightning_meta.core import SGD, Adam, Momentum, RMSprop, mean_and_ci95
from lightning_meta.datamodules.optimizees.optimizees import OptimizeeDataModule, Segment
from lightning_meta.modules import TruncatedModule
from lightning_meta.ranks import gather
from lightning_meta.viz import learning_curves

log = logging.getLogger(__name__)

Baseline = SGD | Momentum | RMSprop | Adam

BASELINES: Mapping[str, Callable[[float], Baseline]] = {
    "SGD": SGD,
    "NAG": partial(Momentum, nesterov=True),
    "RMSprop": RMSprop,
    "Adam": Adam,
}
RATES = tuple(10 ** (k / 4) for k in range(-12, 7))


class LearningCurves(Pictures):
    """Losses of the learned optimizer on the test optimizees, step by step, against SGD, NAG, RMSprop and Adam.

    Each baseline has the learning rate from a grid, the same for all, with which its mean final loss is smallest on
    validation optimizees; its other settings are torch's defaults, momentum 0.9 for NAG.

    Logs for each baseline, say adam, `test/adam_final_loss` and `test/adam_lr`, and `test/below_adam`: how much lower
    the learned optimizer's final loss is, paired by optimizee. Writes `<log_dir>/learning_curves.csv` (step, and for
    each optimizer its mean loss and half-width of the interval), `<log_dir>/learning_rates.csv` (the search), and the
    picture `learning_curves`. For `TruncatedModule`; anything else is skipped without a word.

    Args:
        tuning_episodes: how many validation optimizees, at most `val_episodes`.
        rates: the grid of learning rates.
    """

    def __init__(self, tuning_episodes: int = 100, rates: Sequence[float] = RATES) -> None:
        super().__init__()
        self.tuning_episodes, self.rates = tuning_episodes, tuple(rates)
        self.search: list[dict[str, Any]] = []
        self.baselines: dict[str, Baseline] = {}
        self.losses: dict[str, list[Tensor]] = {}  # by optimizer: (T, S + 1) of each batch
        self.curves: dict[str, tuple[Tensor, Tensor]] = {}
        self.count = 0  # of optimizees that they are the means of

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.search, self.baselines, self.losses, self.curves = [], {}, {}, {}
        data = getattr(trainer, "datamodule", None)
        if isinstance(pl_module, TruncatedModule) and isinstance(data, OptimizeeDataModule):
            # Every rank searches for itself, with the same result.
            ids = range(min(self.tuning_episodes, data.val_episodes))
            size = data.eval_meta_batch_size
            tasks = [data.dataset("val").__getitems__(ids[i : i + size]) for i in range(0, len(ids), size)]
            self._search(pl_module, [to_device(trainer, part) for part in tasks])

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

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.baselines:
            assert isinstance(pl_module, TruncatedModule)
            self.losses.setdefault(type(pl_module).__name__, []).append(outputs["losses"])
            for name, baseline in self.baselines.items():
                self.losses.setdefault(name, []).append(pl_module.optimize(batch, baseline))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not any(gather(bool(self.losses))):
            return
        mine = {name: torch.cat(parts).double().cpu() for name, parts in self.losses.items()}
        parts = gather(mine)  # a rank without optimizees has none
        losses = {name: torch.cat([part[name] for part in parts if part]) for name in next(filter(None, parts))}
        self.curves = {name: _mean_and_ci95(losses_TS) for name, losses_TS in losses.items()}
        self.count = len(next(iter(losses.values())))
        ours_TS = losses.pop(type(pl_module).__name__)
        for name, losses_TS in losses.items():
            below = _mean_and_ci95(losses_TS[:, -1] - ours_TS[:, -1])
            final = [values[-1] for values in self.curves[name]]
            for key, (mean, ci95) in {f"{name.lower()}_final_loss": final, f"below_{name.lower()}": below}.items():
                pl_module.log(f"test/{key}", mean)
                pl_module.log(f"test/{key}_ci95", ci95)
            pl_module.log(f"test/{name.lower()}_lr", cast(float, self.baselines[name].lr))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.paths = []
        log_dir = trainer.log_dir  # communicates: every rank must ask
        data = getattr(trainer, "datamodule", None)
        if log_dir is None or not trainer.is_global_zero:
            return
        if not (self.curves and isinstance(data, OptimizeeDataModule)):
            return
        steps = len(next(iter(self.curves.values()))[0])
        rows: list[dict[str, float]] = [{"step": step} for step in range(steps)]
        for name, curve in self.curves.items():
            for row, mean, ci95 in zip(rows, *(values.tolist() for values in curve), strict=True):
                row |= {name: mean, f"{name} ci95": ci95}
        write_csv(Path(log_dir, "learning_curves.csv"), rows)
        write_csv(Path(log_dir, "learning_rates.csv"), self.search)
        title = f"{type(pl_module).__name__} on {data.name}\n{data.describe('test')}"
        figure = learning_curves(self.curves, self.count, title)
        self.write(figure, "learning_curves", trainer, Path(log_dir))


def _mean_and_ci95(values: Tensor) -> tuple[Tensor, Tensor]:
    """Over the first axis."""
    return mean_and_ci95(values.sum(0), values.square().sum(0), torch.tensor(len(values)))
