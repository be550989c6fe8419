"""How a search for an architecture came to its cell: the share of every operation, update by update."""

from itertools import count
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_meta.modules import ArchitectureModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREEN, GREY, LABEL, PURPLE, VERMILLION, new_figure, tidy
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested

COLOURS = (GREY, BLUE, GREEN, PURPLE, VERMILLION)


class ArchitecturePath(Report):
    """Writes `<log_dir>/architecture_path.csv` (update, edge, and the share of each operation), and the picture
    `architecture_path`. For searches among cells: DARTS, ENAS, REINFORCE, evolution, random search.

    Args:
        every: how many outer updates there are from one row and point to the next.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(every=every)
        self.every = every

    def applies(self, tested: Tested) -> bool:
        return isinstance(tested.module, ArchitectureModule)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module: ArchitectureModule = tested.module
        path = module.path[self.every - 1 :: self.every]
        if not path:
            return {}
        path_UEO, names, nodes = torch.stack(path), module.cell.operations, module.cell.nodes
        edges = [f"{i}-{j}" for j in range(1, nodes) for i in range(j)]
        rows = [
            {"update": update, "edge": edge, **dict(zip(names, shares, strict=True))}
            for update, of_edges in zip(count(self.every, self.every), path_UEO.tolist(), strict=False)
            for edge, shares in zip(edges, of_edges, strict=True)
        ]
        write_csv(log_dir / "architecture_path.csv", rows)
        found = module.cell.named(module.chosen())
        return {"architecture_path": architecture_path(path_UEO, edges, names, found, tested.name, self.every)}


def architecture_path(
    path_UEO: Tensor, edges: list[str], operations: tuple[str, ...], found: str, title: str, every: int = 1
) -> Figure:
    """An axis for each edge: shares of the operations over outer updates U, stacked to 1; the cell found above them.

    Args:
        path_UEO: shares, after each update.
        edges, operations: their names.
        found: name of the cell, `conv3|pool|zero`.
        title: of the picture.
        every: how many updates there are from one point to the next.
    """
    figure = new_figure(6.4, 1.2 + 1.4 * len(edges), title)
    updates = torch.arange(len(path_UEO) + 1) * every
    path_UEO = torch.cat([path_UEO, path_UEO[-1:]])  # the last update is as wide as the others
    axes = figure.subplots(len(edges), 1, sharex=True, squeeze=False)[:, 0]
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(operations))]
    for place, (edge, its) in enumerate(zip(edges, found.split("|"), strict=True)):
        axis, shares_OU = axes[place], path_UEO[:, place].T
        axis.stackplot(updates, shares_OU, labels=operations, colors=colours, alpha=0.8, lw=0, step="post")
        last = place == len(edges) - 1
        tidy(axis, "outer update" if last else "", f"edge {edge}")
        axis.set_title(f"found: {its}", fontsize=LABEL, loc="right")
        axis.set_ylim(0, 1)
        axis.set_xlim(0, int(updates[-1]))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(operations), frameon=False, fontsize=LABEL)
    return figure
