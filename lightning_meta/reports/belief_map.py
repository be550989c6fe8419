"""Does a learner know where it has looked? Its belief about the goal of a grid, beside the exact one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.reinforcement.varibad import VariBAD
from lightning_meta.compat import tree_map
from lightning_meta.core.gaussian import Gaussian
from lightning_meta.datamodules.trials.rollouts import Rollouts
from lightning_meta.modules.rollout import Told
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import GREY, INK, LABEL, SMALL, VERMILLION, new_figure
from lightning_meta.reports.tested import Tested
from lightning_meta.worlds.grid import Grid

DRAWS = 256  # of the latent vector: points of a normal distribution that never change


class BeliefMap(Report):
    """How likely each cell is the goal, after some steps of the first test task, the picture `belief_map`.

    One row is what `VariBAD` believes, of the other what can be known: nothing where one has been, the same elsewhere,
    until the goal is found. For the world `Grid`.

    Args:
        steps: at how many moments of the trial, spread evenly over the steps until the goal is found and two more.
    """

    def __init__(self, steps: int = 6) -> None:
        super().__init__(steps=steps)
        self.steps = steps

    def applies(self, tested: Tested) -> bool:
        data = tested.data
        return isinstance(tested.module, VariBAD) and isinstance(data, Rollouts) and isinstance(data.world, Grid)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        trials = tested.to_device(tested.data.dataset("test").__getitems__(tested.first(1)))
        rounds = tested.module.record(trials)
        told, actions_L1 = tree_map(
            lambda *parts: torch.cat([part[0, :, :1] for part in parts]),
            *((each.told, each.actions) for each in rounds),
        )
        world, goal = tested.data.world, int(trials.task[0])
        exact_LC = posterior(world, trials.task[0], told.seen[:, 0], actions_L1[:, 0])
        found_L = (exact_LC.max(-1).values == 1).nonzero()
        last = min(int(found_L[0]) + 2 if len(found_L) else len(exact_LC) - 1, len(exact_LC) - 1)
        moments = sorted({round(part) for part in np.linspace(0, last, self.steps).tolist()})
        believed_LC = believed(tested.module, tree_map(lambda leaf: leaf[: last + 1], told), world)
        rows = {"believed": believed_LC.cpu(), "what can be known": exact_LC.cpu()}
        walks = told.seen[:, 0].argmax(-1).cpu().split(world.horizon)
        return {"belief_map": belief_map(rows, walks, moments, world.side, goal, tested.title)}


def believed(module: VariBAD, told: Told, world: Grid) -> Tensor:
    """The chance that each cell of the grid pays, after each of L steps `(L, C)`, in parts of all of them."""
    belief: Gaussian = module.beliefs(told)
    # Points of equal probability of a normal distribution in each latent number, in orders that have nothing in common.
    points = torch.special.ndtri((torch.arange(DRAWS) + 0.5) / DRAWS)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(DRAWS), (module.latent, 1)), axis=1)
    noise_DZ = points[torch.from_numpy(order.T.copy())].to(belief.mean)
    latent_LDZ = belief.mean + belief.std * noise_DZ  # of one trajectory
    cells_CO = torch.eye(world.seen_size).to(latent_LDZ)
    moves = F.one_hot(torch.arange(module.actions.n), module.actions.n).to(latent_LDZ)
    pays = [module.decoded(latent_LDZ, cells_CO, move.expand(world.seen_size, -1)).sigmoid().mean(-2) for move in moves]
    chances_LC = torch.stack(pays).mean(0)
    return chances_LC / chances_LC.sum(-1, keepdim=True)


def posterior(world: Grid, goal: Tensor, seen_LC: Tensor, actions_L: Tensor) -> Tensor:
    """What can be known of the goal before each of L steps `(L, C)`: the same of cells where one has not been."""
    reached_L, *_ = world.step(goal, seen_LC.argmax(-1), actions_L, seen_LC[:, :1])
    been_LC = F.one_hot(reached_L, world.seen_size).cumsum(0).roll(1, 0) > 0
    been_LC[0] = False
    may_be_C = torch.zeros_like(been_LC[0])
    may_be_C[world.goals] = True
    unknown_LC = (may_be_C & ~been_LC).to(seen_LC.dtype)
    exact_LC = unknown_LC / unknown_LC.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(been_LC[:, goal, None], F.one_hot(goal, world.seen_size).to(seen_LC.dtype), exact_LC)


def belief_map(
    rows: dict[str, Tensor], walks: Sequence[Tensor], moments: list[int], side: int, goal: int, title: str
) -> Figure:
    """A map of the grid for each row and moment, with the walk at that moment and those before it.

    Args:
        rows: by name, chances of the cells after each step, `(L, C)`.
        walks: the cells `(H,)` of each.
        moments: the steps that are drawn.
        side: of the grid.
        goal: the cell of the goal.
        title: of the picture.
    """
    figure = new_figure(1.75 * len(moments) + 0.6, 1.75 * len(rows) + 0.8, f"{title}: where the goal may be")
    panels = figure.subplots(len(rows), len(moments), squeeze=False)
    horizon = len(walks[0])
    for axes, moment in zip(panels[0], moments, strict=True):
        axes.set_title(f"walk {moment // horizon + 1}, step {moment % horizon}", fontsize=SMALL, color=INK)
    for (name, chances_LC), line in zip(rows.items(), panels, strict=True):
        for moment, axes in zip(moments, line, strict=True):
            # A cell (x, y) has the number x * side + y; y is up. Small chances are told apart as large ones are.
            image = chances_LC[moment].view(side, side).T
            shown = axes.imshow(image.numpy(), "Blues", origin="lower", norm=PowerNorm(0.5, 0, 1))
            for number in range(moment // horizon + 1):
                way = walks[number][: moment + 1 - number * horizon]
                axes.plot(way // side, way % side, color=INK if number == moment // horizon else GREY, lw=1.2)
            axes.plot(int(way[-1]) // side, int(way[-1]) % side, "o", color=INK, ms=5)
            axes.plot(goal // side, goal % side, "*", color=VERMILLION, ms=9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(GREY)
        line[0].set_ylabel(name, fontsize=LABEL, color=INK)
    bar = figure.colorbar(shown, ax=panels, shrink=0.7)
    bar.ax.tick_params(labelsize=SMALL, color=GREY, labelcolor=INK)
    return figure
