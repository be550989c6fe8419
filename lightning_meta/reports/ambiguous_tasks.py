"""Which answers does a task leave open? After figure 3 of the PLATIPUS paper (arXiv:1806.02817)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.repairs import repaired
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.functions.circles import CircleSource
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, INK, LABEL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested

GRID = 60  # points along a side
SHADES = LinearSegmentedColormap.from_list("inside", ["#FFFFFF", "#BBD7EA"])


class AmbiguousTasks(Report):
    """Picture `ambiguous_tasks`: support points in the plane, and where each predictor that fits them draws the border.

    The shade is the probability of the inside, the mean over predictors. BMAML's are its particles, PLATIPUS' its
    draws; others have one. For `Circles`.

    Args:
        tasks: how many test episodes.
    """

    def __init__(self, tasks: int = 3) -> None:
        super().__init__(tasks=tasks)
        self.tasks = tasks

    def applies(self, tested: Tested) -> bool:
        return tested.classifies and tested.draws_from(CircleSource)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        data, ids = tested.data, tested.first(self.tasks)
        circles = data.sources["test"].circles(episode_keys(data.seed, STREAM["test"], ids))
        support = tested.episodes(ids).support
        line = torch.linspace(-1, 1, GRID).to(support.x)
        grid_Q2 = torch.cartesian_prod(line, line)
        with tested.trainer.precision_plugin.test_step_context(), repaired(tested.module):
            answers = [predictors(tested.module, Batch(*task), grid_Q2) for task in zip(*support, strict=True)]
        return {"ambiguous_tasks": ambiguous_tasks(support, answers, circles, tested.title)}


def predictors(module: object, support: Batch, x_Q2: Tensor) -> Tensor:
    """The probability of class 1 by each predictor that a module has after one task, `(M, Q)`."""
    adapted = module.adapt(support)  # type: ignore[attr-defined]
    each = getattr(module, "logits_of_each", None)
    probabilities = each(adapted, x_Q2).softmax(-1) if each else module.predict(adapted, x_Q2)[None]  # type: ignore[attr-defined]
    return probabilities[..., 1].detach().float().cpu()


def ambiguous_tasks(
    support: Batch, answers: Sequence[Tensor], circles: np.ndarray, title: str = "Ambiguous tasks"
) -> Figure:
    """One panel for each of T tasks.

    Args:
        support: points `(T, S, 2)` and their classes.
        answers: of each task, the probability of class 1 `(M, Q)` by M predictors on a square grid of Q points.
        circles: centre and radius of the true ones `(T, 3)`.
    """
    figure = new_figure(3.2 * len(answers) + 0.4, 4.2, title)
    panels = figure.subplots(1, len(answers), squeeze=False, sharey=True)[0]
    line = np.linspace(-1, 1, GRID)
    for axes, x, y, answers_MQ, (left, low, radius) in zip(panels, *support, answers, circles, strict=True):
        maps = answers_MQ.view(-1, GRID, GRID).mT.numpy()  # the first coordinate goes to the right
        axes.imshow(maps.mean(0), extent=(-1, 1, -1, 1), origin="lower", cmap=SHADES, vmin=0, vmax=1)
        for one in maps:
            if one.min() < 0.5 < one.max():
                axes.contour(line, line, one, levels=[0.5], colors=[BLUE], linewidths=1.0, alpha=0.7)
        axes.add_patch(Circle((left, low), radius, fill=False, color=INK, linestyle="--", linewidth=1.2))
        for label, marker in ((0, "x"), (1, "^")):
            axes.scatter(*x[y == label].float().cpu().T, color=VERMILLION, marker=marker, s=40, zorder=3)
        tidy(axes)
        axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    count = len(answers[0])
    names = [
        Line2D([], [], color=BLUE, label="border of a predictor" if count > 1 else "border"),
        Line2D([], [], color=INK, linestyle="--", label="true circle"),
        Line2D([], [], color=VERMILLION, marker="^", linestyle="", label="support inside"),
        Line2D([], [], color=VERMILLION, marker="x", linestyle="", label="outside"),
    ]
    columns = 4 if len(answers) > 1 else 2
    figure.legend(handles=names, loc="outside lower center", ncols=columns, frameon=False, fontsize=LABEL)
    return figure
