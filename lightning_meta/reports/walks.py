"""Does a policy find the goal? Walks in the plane before adaptation and after it."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.datamodules.trials.rollouts import Rollouts
from lightning_meta.modules.rollout import RolloutModule, Trajectories
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, LABEL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested
from lightning_meta.worlds.navigation import STRIDE, Navigation


class Walks(Report):
    """Walks of the first and of the last round to the goals of the first test tasks, the picture `walks`.

    For any `RolloutModule` in the world `Navigation`.

    Args:
        tasks: how many, at most `test_episodes`.
        walks: of each round.
    """

    def __init__(self, tasks: int = 6, walks: int = 5) -> None:
        super().__init__(tasks=tasks, walks=walks)
        self.tasks, self.walks = tasks, walks

    def applies(self, tested: Tested) -> bool:
        module, data = tested.module, tested.data
        return isinstance(module, RolloutModule) and isinstance(data, Rollouts) and isinstance(data.world, Navigation)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        trials = tested.to_device(tested.data.dataset("test").__getitems__(tested.first(self.tasks)))
        rounds = tested.module.record(trials)
        chosen = {"before adaptation": rounds[0]}
        if (after := len(rounds) - 1) > 0:
            chosen[f"after {after} round{'s' * (after > 1)} of adaptation"] = rounds[-1]
        came_by = {name: places(played, self.walks) for name, played in chosen.items()}
        return {"walks": walks(trials.task.cpu(), came_by, tested.title)}


def places(played: Trajectories, count: int) -> list[list[Tensor]]:
    """Where each of T tasks' first walks came by, from the start to the end, `(L + 1, 2)` each."""
    seen_THB2, lengths_TB = played.told.seen.cpu(), played.alive.sum(1).long().cpu()
    reached_THB2 = seen_THB2 + STRIDE * played.actions.cpu().clamp(-1, 1)
    whole_THB2 = torch.cat([seen_THB2[:, :1], reached_THB2], dim=1)
    return [
        [walk_HB2[: length + 1, place] for place, length in enumerate(lengths[:count].tolist())]
        for walk_HB2, lengths in zip(whole_THB2, lengths_TB, strict=True)
    ]


def walks(goals: Tensor, came_by: dict[str, list[list[Tensor]]], title: str) -> Figure:
    """One panel for each of T tasks.

    Args:
        goals: `(T, 2)`.
        came_by: for each of up to two rounds, for each task, its walks, each `(L, 2)`.
        title: of the picture.
    """
    columns = min(len(goals), 3)
    rows = -(-len(goals) // columns)
    figure = new_figure(3.1 * columns, 3.1 * rows + 0.5, f"{title}: walks to a goal that is not shown")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for place, axes in enumerate(panels):
        if place >= len(goals):
            axes.set_axis_off()
            continue
        for (name, of_tasks), colour in zip(came_by.items(), (GREY, BLUE), strict=False):
            for number, walk_L2 in enumerate(of_tasks[place]):
                axes.plot(*walk_L2.T.tolist(), color=colour, lw=1, alpha=0.8, label=name if not number else None)
        axes.plot(0, 0, "o", color="black", ms=4, label="start")
        axes.plot(*goals[place].tolist(), "*", color=VERMILLION, ms=13, label="goal")
        axes.set_aspect("equal")
        tidy(axes)
    everywhere = torch.cat([walk for of_tasks in came_by.values() for task in of_tasks for walk in task])
    reach = max(float(everywhere.abs().max()), 0.6)
    axes = figure.axes[0]
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=LABEL)
    return figure
