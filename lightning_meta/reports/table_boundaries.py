"""Where a learner of tables divides the plane after reading a few rows, beside classifiers of scikit-learn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lightning_meta.algorithms.in_context.tab_pfn import TabPFN
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules.tables.tabular_prior import TabularPriorSource
from lightning_meta.errors import require_at_least
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREEN, INK, LABEL, SMALL, VERMILLION, new_figure
from lightning_meta.reports.tested import Tested

Array = npt.NDArray[np.float64]
COLOURS = (BLUE, VERMILLION, GREEN)
EDGE = 0.15  # around the points, of their extent
OTHERS = 60  # rows that are not learned from


class Plane(NamedTuple):
    """A table of two columns: the rows that are learned from, others, and what classifiers say of a grid of places.

    Attributes:
        x, y: the rows `(S, 2)` and their classes `(S,)`.
        chances: of each classifier the probability of each class `(H, W, C)`, from below to above.
        right: of each classifier the share of other rows that it has right.
        extent: left, right, bottom and top of the grid.
    """

    x: Array
    y: npt.NDArray[np.int64]
    chances: Mapping[str, Array]
    right: Mapping[str, float]
    extent: tuple[float, float, float, float]


class TableBoundaries(Report):
    """The picture `table_boundaries`: two moons, two circles, and iris by its petals, for a `TabPFN` and for others.

    Args:
        per_class: rows that are learned from, 2 or more.
        resolution: of the plane, points on a side.
    """

    def __init__(self, per_class: int = 15, resolution: int = 60) -> None:
        super().__init__(per_class=per_class, resolution=resolution)
        require_at_least(2, per_class=per_class)
        self.per_class, self.resolution = per_class, resolution

    def applies(self, tested: Tested) -> bool:
        return isinstance(tested.module, TabPFN) and tested.draws_from(TabularPriorSource)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        from lightning_meta.benchmark.tables import rivals

        name, planes = type(tested.module).__name__, {}
        for title, (x, y) in examples().items():
            rows = self.per_class * len(np.unique(y))
            others, truth = x[rows : rows + OTHERS], y[rows : rows + OTHERS]
            x, y = x[:rows], y[:rows]
            margin = EDGE * np.ptp(x, axis=0)
            low, high = x.min(0) - margin, x.max(0) + margin
            across, up = (np.linspace(a, b, self.resolution) for a, b in zip(low, high, strict=True))
            grid = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
            asked, size = np.concatenate([grid, others]), int(y.max()) + 1
            found = {name: of_module(tested, x, y, asked)[:, :size]}
            found |= {other: make(0).fit(x, y).predict_proba(asked) for other, make in rivals().items()}
            parts = {which: np.split(chances, [len(grid)]) for which, chances in found.items()}
            planes[title] = Plane(
                x, y,
                {which: on_grid.reshape(self.resolution, -1, size) for which, (on_grid, _) in parts.items()},
                {which: float((of_others.argmax(1) == truth).mean()) for which, (_, of_others) in parts.items()},
                (low[0], high[0], low[1], high[1]),
            )  # fmt: skip
        title = f"{tested.name}: what is learned from {self.per_class} rows of each class"
        return {"table_boundaries": table_boundaries(planes, title)}


def examples() -> dict[str, tuple[Array, npt.NDArray[np.int64]]]:
    """150 rows `(E, 2)` and classes `(E,)` of each table, the classes in turn."""
    from sklearn import datasets

    iris = datasets.load_iris()
    tables = {
        "moons": datasets.make_moons(150, noise=0.25, random_state=0),
        "circles": datasets.make_circles(150, noise=0.12, factor=0.4, random_state=0),
        "iris (petals)": (iris.data[:, 2:], iris.target),
    }
    drawn = {}
    for name, (x, y) in tables.items():
        order = np.random.default_rng(0).permutation(len(y))
        turn = np.argsort([np.count_nonzero(y[order[:k]] == y[row]) for k, row in enumerate(order)], kind="stable")
        drawn[name] = x[order[turn]], y[order[turn]]
    return drawn


def of_module(tested: Tested, x: Array, y: npt.NDArray[np.int64], asked: Array) -> Array:
    """Probabilities `(Q, C)`."""
    support = Batch(torch.from_numpy(x).float()[None], torch.from_numpy(y).long()[None])
    query = Batch(torch.from_numpy(asked).float()[None], torch.zeros(1, len(asked), dtype=torch.long))
    return tested.play(tested.to_device(Episode(support, query))).preds[0].softmax(-1).double().cpu().numpy()


def table_boundaries(planes: Mapping[str, Plane], title: str) -> Figure:
    """A row for each table and a column for each classifier: colours are mixed by the probabilities of classes."""
    names: Sequence[str] = list(next(iter(planes.values())).chances)
    figure = new_figure(2.4 * len(names), 2.4 * len(planes) + 0.4, title)
    grid = figure.subplots(len(planes), len(names), squeeze=False)
    palette = np.array([to_rgb(colour) for colour in COLOURS])
    for row, (table, plane) in enumerate(planes.items()):
        for axes, name in zip(grid[row], names, strict=True):
            chances = plane.chances[name]
            colours = 1 - 0.6 * (1 - chances @ palette[: chances.shape[-1]])
            axes.imshow(colours, origin="lower", extent=plane.extent, aspect="auto", interpolation="bilinear")
            axes.scatter(*plane.x.T, c=palette[plane.y], s=16, edgecolor="white", lw=0.7)
            axes.set(xticks=[], yticks=[], xlim=plane.extent[:2], ylim=plane.extent[2:])
            axes.text(
                0.97, 0.03, f"{100 * plane.right[name]:.0f} %", transform=axes.transAxes, ha="right", va="bottom",
                fontsize=SMALL, color=INK, bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 1.5},
            )  # fmt: skip
            if row == 0:
                axes.set_title(name, fontsize=LABEL, color=INK)
        grid[row, 0].set_ylabel(table, fontsize=LABEL, color=INK)
    return figure
