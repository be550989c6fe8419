"""Where a classifier of points in the plane divides them, and which points it has learned from."""

from pathlib import Path

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.datamodules.bilevel.two_moons import TwoMoons
from lightning_meta.modules import BilevelModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested

EDGE = 0.3  # around the points
SIDES = LinearSegmentedColormap.from_list("sides", [BLUE, "white", VERMILLION])


class DecisionBoundary(Report):
    """The picture `decision_boundary`: probabilities over the plane, the points to learn from and the labelled ones.

    For a `BilevelModule` on `TwoMoons`; of several trainings, the first.

    Args:
        points: of those to learn from, how many are drawn.
        resolution: of the plane, points on a side.
    """

    def __init__(self, points: int = 500, resolution: int = 200) -> None:
        super().__init__(points=points, resolution=resolution)
        self.points, self.resolution = points, resolution

    def applies(self, tested: Tested) -> bool:
        return isinstance(tested.module, BilevelModule) and isinstance(tested.data, TwoMoons)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module, data = tested.module, tested.data
        if module.judged is None:
            return {}
        weights = {name: value[0] for name, value in module.judged.params.items()}
        cloud, labelled = data.learned_from().x, data.all_held_out()
        low, high = cloud.amin(0) - EDGE, cloud.amax(0) + EDGE
        across, up = (torch.linspace(a, b, self.resolution) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        grid = torch.cartesian_prod(across, up)
        second = module.logits(weights, tested.to_device(grid)).softmax(1)[:, 1].float().cpu()
        order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(0))[: self.points]
        plane = second.view(self.resolution, self.resolution).T
        return {"decision_boundary": decision_boundary(across, up, plane, cloud[order], labelled, tested.name)}


def decision_boundary(across: Tensor, up: Tensor, second: Tensor, cloud: Tensor, labelled: Batch, title: str) -> Figure:
    """The plane coloured by a probability, its boundary at one half, and the points.

    Args:
        across, up: where the plane is looked at, `(W,)` and `(H,)`.
        second: probability of the second class there, `(H, W)`.
        cloud: points without labels, `(E, 2)`.
        labelled: points with labels, `(Q, 2)` and `(Q,)`.
        title: of the picture.
    """
    figure = new_figure(6.4, 4.2, f"{title}: what is learned from {len(labelled.y)} labels")
    axes = figure.subplots()
    axes.contourf(across, up, second, levels=torch.linspace(0, 1, 11).tolist(), cmap=SIDES, alpha=0.45)
    axes.contour(across, up, second, levels=[0.5], colors=[INK], linewidths=1.5)
    axes.scatter(cloud[:, 0], cloud[:, 1], s=5, color=GREY, lw=0, alpha=0.7, label="without a label")
    for label, colour in enumerate((BLUE, VERMILLION)):
        mine = labelled.x[labelled.y == label]
        axes.scatter(
            mine[:, 0], mine[:, 1], s=70, color=colour, edgecolor=INK, lw=1, zorder=3, label=f"labelled, class {label}"
        )
    tidy(axes, "x", "y")
    axes.grid(False)
    axes.set_aspect("equal")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=LABEL)
    return figure
