"""What does adaptation do to a function? After figure 2 of the MAML paper (arXiv:1703.03400)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.functions.sinusoid import SinusoidSource
from lightning_meta.errors import require_at_least
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested

GRID_POINTS = 200
# Fits in the order of their step counts: the later, the more visible. A longer list repeats the last.
LINES = (
    {"color": GREY, "linestyle": ":", "linewidth": 1.5},
    {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
    {"color": BLUE, "linestyle": "-", "linewidth": 2.0},
)


class SineFits(Report):
    """Picture `sine_fits`: true waves of test episodes, their support points, and the fits after some inner steps.

    For sinusoid regression by an algorithm that has `eval_inner_steps`.

    Args:
        tasks: how many test episodes.
        steps: inner step counts; 0 is the fit before adaptation.
    """

    def __init__(self, tasks: int = 3, steps: Sequence[int] = (0, 1, 10)) -> None:
        super().__init__(tasks=tasks)
        require_at_least(0, steps=min(steps, default=None))
        self.tasks, self.steps = tasks, tuple(steps)

    def applies(self, tested: Tested) -> bool:
        return tested.draws_from(SinusoidSource) and tested.adapts_in_steps

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        data, ids = tested.data, tested.first(self.tasks)
        source: SinusoidSource = data.sources["test"]
        support = tested.episodes(ids).support
        x = torch.linspace(*source.x_range, GRID_POINTS, dtype=torch.float64)
        truth = torch.from_numpy(source.wave(episode_keys(data.seed, STREAM["test"], ids), x.numpy()))
        query = Batch(x.expand_as(truth)[..., None].to(support.x), truth[..., None].to(support.y))
        tasks = Episode(support, query)
        fits = {steps: tested.play(tasks, inner_steps=steps).preds.float().cpu().squeeze(-1) for steps in self.steps}
        title = f"{tested.name}, {data.shapes['test'].k_shot}-shot"
        return {"sine_fits": sine_fits(x, truth, tree_map(lambda leaf: leaf.float().cpu(), support), fits, title)}


def sine_fits(
    x: Tensor, truth: Tensor, support: Batch, fits: Mapping[int, Tensor], title: str = "Sine waves"
) -> Figure:
    """One panel for each of T tasks: the true wave, its support points and the fits to them.

    Args:
        x: grid `(M,)`.
        truth: values of the true waves on the grid `(T, M)`.
        support: points `(T, K, 1)` and their values `(T, K, 1)`.
        fits: for each inner step count, predictions on the grid `(T, M)`.
    """
    n_tasks = len(truth)
    width = max(3.2 * n_tasks, 5.5)  # inches
    figure = new_figure(width, 3.9, title)
    panels = figure.subplots(1, n_tasks, squeeze=False, sharey=True)[0]
    for task, axes in enumerate(panels):
        axes.plot(x, truth[task], color=INK, linewidth=1.2, label="true wave")
        for i, (steps, fit) in enumerate(sorted(fits.items())):
            axes.plot(x, fit[task], **LINES[min(i, len(LINES) - 1)], label=_name(steps))
        axes.scatter(support.x[task], support.y[task], color=INK, marker="^", s=36, zorder=3, label="support points")
        tidy(axes, "x", "y" if task == 0 else "")
    reach = 1.4 * max(float(truth.abs().max()), 1.0)  # a diverging fit leaves the panel and does not flatten the waves
    panels[0].set_ylim(-reach, reach)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), int(width / 1.9))  # inches for the longest entry
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=LABEL)
    return figure


def _name(steps: int) -> str:
    return "before adaptation" if steps == 0 else f"{steps} step" + "s" * (steps > 1)
