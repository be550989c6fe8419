"""How much is lost to not knowing the best arm? The regret by pull, beside players that know how arms are drawn."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.reinforcement.players import Gittins, Thompson
from lightning_meta.core import mean_and_ci95_over
from lightning_meta.datamodules.trials.rollouts import Rollouts
from lightning_meta.modules.rollout import RolloutModule, Trajectories
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, LABEL, VERMILLION, Curve, new_figure, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested
from lightning_meta.worlds import Bandits

LINES = ((BLUE, "-"), (VERMILLION, "--"), (GREY, ":"))  # of whoever was tested, Thompson sampling and Gittins indices


class Regret(Report):
    """The regret up to each pull of the first test tasks: what always the best arm would have earned more, on average.

    Of whoever was tested, of Thompson sampling and of Gittins indices, on the same tasks and dice. Writes
    `<log_dir>/regret.csv` (pulls, and for each its regret and half-width of the interval) and the picture `regret`. For
    any `RolloutModule` in the world `Bandits`; of a trial the last round counts.

    Args:
        tasks: how many, at most `test_episodes`.
    """

    def __init__(self, tasks: int = 500) -> None:
        super().__init__(tasks=tasks)
        self.tasks = tasks

    def applies(self, tested: Tested) -> bool:
        module, data = tested.module, tested.data
        return isinstance(module, RolloutModule) and isinstance(data, Rollouts) and isinstance(data.world, Bandits)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        world, module = tested.data.world, tested.module
        trials = tested.to_device(tested.data.dataset("test").__getitems__(tested.first(self.tasks)))
        players: dict[str, RolloutModule] = {type(module).__name__: module}
        for player in (Thompson(world.actions.n), Gittins(world.actions.n, world.horizon)):
            player.world = world
            players.setdefault(type(player).__name__, player.to(module.device))
        lost = {name: regret(player.record(trials)[-1], trials.task) for name, player in players.items()}
        curves = {name: mean_and_ci95_over(lost_TH.double().cpu()) for name, lost_TH in lost.items()}
        write_csv(log_dir / "regret.csv", rows_of(curves, "pulls", "_ci95"))
        return {"regret": regret_curves(curves, len(trials.task), tested.title)}


def regret(played: Trajectories, chances_TK: Tensor) -> Tensor:
    """What was lost in T tasks after 0 to H pulls, on average `(T, H + 1)`, by the chances of arms."""
    best_T11 = chances_TK.amax(-1)[:, None, None]
    pulled_THB = chances_TK[:, None].expand(-1, played.actions.shape[1], -1).gather(-1, played.actions)
    return F.pad((best_T11 - pulled_THB).mean(-1).cumsum(-1), (1, 0))


def regret_curves(curves: dict[str, Curve], tasks: int, title: str) -> Figure:
    """A line and its band for each of up to three.

    Args:
        curves: mean `(H + 1,)` and half-width of the interval `(H + 1,)`.
        tasks: how many the means are taken over.
        title: of the picture.
    """
    figure = new_figure(6.0, 4.2, f"{title}\nregret, mean and 95 % interval over {tasks} tasks")
    axes = figure.subplots()
    for (name, (mean_H, half_H)), (colour, style) in zip(curves.items(), LINES, strict=False):
        pulls, half_H = range(len(mean_H)), half_H.nan_to_num(0)
        axes.fill_between(pulls, mean_H - half_H, mean_H + half_H, color=colour, alpha=0.2, lw=0)
        axes.plot(pulls, mean_H, color=colour, linestyle=style, linewidth=1.6, label=name)
    tidy(axes, "pulls", "regret")
    axes.legend(frameon=False, fontsize=LABEL)
    return figure
