"""How close do predictions come to what there is to know about a function?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import Keys, episode_keys
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.functions.gaussian_process import GaussianProcessSource
from lightning_meta.metrics import EpisodicLogLikelihood, EpisodicMean
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, INK, LABEL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested

GRID_POINTS, COLUMNS = 200, 2
BOUNDS = ("gp_log_likelihood", "gp_averaged_log_likelihood", "gp_averaged_normal_log_likelihood")


class ProcessFits(Report):
    """Predictions for draws of Gaussian processes, against what is to be known of them.

    Logs, each with its `_ci95` and on the same test episodes as `test/log_likelihood`:

    - `test/gp_log_likelihood`: of the posterior under the kernel that a function was drawn from. Out of reach, as no
      algorithm is told the kernel.
    - `test/gp_averaged_log_likelihood`: of the average over kernels, the most that a support set and the knowledge of
      how functions are drawn allow.
    - `test/gp_averaged_normal_log_likelihood`: of normal distributions with its means and standard deviations, the most
      that predictions of this form allow: the bound of neural processes.

    Picture `process_fits`: means and bands of predictions and of the posterior under the true kernel for some test
    episodes. For algorithms that predict means and standard deviations.

    Args:
        tasks: how many test episodes are drawn.
    """

    def __init__(self, tasks: int = 4) -> None:
        super().__init__(tasks=tasks)
        self.tasks = tasks
        self.scores: dict[str, EpisodicMean] = {}

    def applies(self, tested: Tested) -> bool:
        return tested.draws_from(GaussianProcessSource) and isinstance(tested.module.metric, EpisodicLogLikelihood)

    def begin(self, tested: Tested) -> None:
        self.scores = {name: EpisodicMean().to(tested.module.device) for name in BOUNDS}

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        for name, values_T in bounds(tested.data, ids, batch.query.y.cpu()).items():
            self.scores[name].update(values_T.to(tested.module.device))

    def conclude(self, tested: Tested) -> None:
        for name, score in self.scores.items():
            tested.log(name, *score.compute())  # summed over ranks by torchmetrics

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        data, ids = tested.data, tested.first(self.tasks)
        support = tested.episodes(ids).support
        x = torch.linspace(*GaussianProcessSource.x_range, GRID_POINTS, dtype=torch.float64)
        x_TM1 = x.expand(len(ids), -1)[..., None].to(support.x)
        fits = tested.play(Episode(support, Batch(x_TM1, torch.zeros_like(x_TM1)))).preds.squeeze(2)
        support, fits = tree_map(lambda leaf: leaf.float().cpu(), (support, fits))
        title = f"{tested.name}, {data.shapes['test'].k_shot}-shot"
        return {"process_fits": process_fits(x, posterior(data, ids, x.numpy()), support, fits, title)}


def bounds(data: Any, ids: Sequence[int], y_TQ1: Tensor) -> dict[str, Tensor]:
    """Log-likelihoods `(T,)` of the query values of test episodes, by name."""
    averaged = data.sources["test"].averaged_posterior(keys_of(data, ids), data.shapes["test"])
    normal = torch.from_numpy(np.stack([averaged.mean, averaged.std], axis=-1))
    known, normal = (
        EpisodicLogLikelihood.per_episode(fit.unsqueeze(2), y_TQ1) for fit in (posterior(data, ids), normal)
    )
    return dict(zip(BOUNDS, (known, torch.from_numpy(averaged.log_density).mean(1), normal), strict=True))


def posterior(data: Any, ids: Sequence[int], x: np.ndarray | None = None) -> Tensor:
    """Mean and standard deviation, `(T, M, 2)`, at the query points of test episodes or at `x`."""
    source, shape = data.sources["test"], data.shapes["test"]
    return torch.from_numpy(np.stack(source.posterior(keys_of(data, ids), shape, x), axis=-1))


def keys_of(data: Any, ids: Sequence[int]) -> Keys:
    return episode_keys(data.seed, STREAM["test"], ids)


def process_fits(x: Tensor, truth: Tensor, support: Batch, fits: Tensor, title: str = "Gaussian processes") -> Figure:
    """One panel for each of T tasks: two means with their bands of two standard deviations, and the support points.

    Args:
        x: grid `(M,)`.
        truth: mean and standard deviation of the true posterior on the grid `(T, M, 2)`.
        support: points `(T, K, 1)` and their values `(T, K, 1)`.
        fits: predictions likewise `(T, M, 2)`.
    """
    rows = -(-len(truth) // COLUMNS)
    figure = new_figure(9.0, 1.2 + 2.4 * rows, f"{title}\nbands: two standard deviations of a noisy value")
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).flatten()
    for task, axes in enumerate(panels[: len(truth)]):
        mean, std = truth[task].unbind(-1)
        axes.plot(x, mean, color=VERMILLION, linestyle="--", linewidth=1.5, label="true posterior")
        for edge in (mean - 2 * std, mean + 2 * std):
            axes.plot(x, edge, color=VERMILLION, linestyle=":", linewidth=1.0)
        mean, std = fits[task].unbind(-1)
        axes.fill_between(x, mean - 2 * std, mean + 2 * std, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(x, mean, color=BLUE, linewidth=1.8, label="prediction")
        axes.scatter(support.x[task], support.y[task], color=INK, marker="^", s=30, zorder=3, label="support points")
        tidy(axes, "x" if task >= len(truth) - COLUMNS else "", "y" if task % COLUMNS == 0 else "")
    for axes in panels[len(truth) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=LABEL)
    return figure
