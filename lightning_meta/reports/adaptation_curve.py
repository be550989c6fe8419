"""Is the number of adaptation steps well chosen? The query loss and score after every adaptation step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pytorch_lightning.loggers import WandbLogger

from lightning_meta.core import mean_and_ci95_over
from lightning_meta.metrics import metric_of
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, SMALL, VERMILLION, Curve, new_figure, tidy
from lightning_meta.reports.tables import rows_of, write_csv
from lightning_meta.reports.tested import Tested


class AdaptationCurve(Report):
    """Query loss and score after 0, 1, ..., `max_steps` inner steps on the first test episodes.

    Writes `<log_dir>/adaptation_curve.csv` (step, loss, loss_ci95, and the metric likewise) and the picture
    `adaptation_curve`. Row k is what a test with `eval_inner_steps=k` of these episodes gives. W&B gets the rows as
    `adaptation/...` over `adaptation/step`, so that its charts lay the curves of several runs over one another. For
    algorithms that have `eval_inner_steps` (MAML and its relatives); others, such as ProtoNet, take no steps.

    Args:
        episodes: how many test episodes, at most `test_episodes`.
        max_steps: largest number of inner steps.
    """

    def __init__(self, episodes: int = 100, max_steps: int = 10) -> None:
        super().__init__(episodes=episodes, max_steps=max_steps)
        self.episodes, self.max_steps = episodes, max_steps

    def applies(self, tested: Tested) -> bool:
        return tested.adapts_in_steps

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module, size, metric = tested.module, tested.data.eval_meta_batch_size, tested.module.metric
        ids, steps = tested.first(self.episodes), range(self.max_steps + 1)
        # Values of each episode E and step S.
        values_ES = {name: torch.empty(len(ids), len(steps)).double() for name in ("loss", metric.name)}
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            tasks = tested.episodes(ids[part])
            for step in steps:
                out = tested.play(tasks, inner_steps=step)
                values_ES["loss"][part, step] = out.loss
                values_ES[metric.name][part, step] = metric.per_episode(out.preds, tasks.query.y)
        # The formula of the metrics, not the metrics themselves: those would wait for the other ranks.
        curves = {name: mean_and_ci95_over(values) for name, values in values_ES.items()}
        rows = rows_of(curves, "step", "_ci95")
        write_csv(log_dir / "adaptation_curve.csv", rows)
        for logger in tested.trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_rows(logger, rows)
        trained = bool(tested.trainer.ckpt_path) or tested.trainer.global_step > 0
        inner_steps = getattr(module, "inner_steps", None) if trained else None
        if torch.allclose(values_ES["loss"], values_ES[metric.name], rtol=1e-5):  # they are the same
            del curves["loss"]
        return {"adaptation_curve": adaptation_curve(steps, curves, len(ids), inner_steps, tested.title)}


def _log_rows(logger: WandbLogger, rows: Sequence[dict[str, float]]) -> None:
    run = logger.experiment
    for name in rows[0]:  # the last step is no summary of a curve
        run.define_metric(f"adaptation/{name}", step_metric="adaptation/step", summary="none")
    for row in rows:
        run.log({f"adaptation/{name}": value for name, value in row.items()})


def adaptation_curve(
    steps: Sequence[int],
    curves: Mapping[str, Curve],
    episodes: int,
    inner_steps: int | None = None,
    title: str = "Adaptation",
) -> Figure:
    """One panel for each curve: the mean over episodes as a line, its 95 % confidence interval as a band.

    Args:
        steps: the S inner step counts, one for each point.
        curves: for each name (`loss`, `acc`, ...) its mean `(S,)` and half-width of the interval `(S,)`.
        episodes: how many episodes the means are taken over.
        inner_steps: marked by a vertical line: how many steps training takes.
    """
    figure = new_figure(4.6 * len(curves), 3.8, f"{title}\nmean and 95 % interval over {episodes} episodes")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, (mean, ci95)) in zip(panels, curves.items(), strict=True):
        written = metric_of(name)
        mean = written.scale * mean.cpu()
        ci95 = written.scale * ci95.cpu().nan_to_num(0)  # a single episode has no interval
        axes.fill_between(steps, mean - ci95, mean + ci95, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color=BLUE, marker="o", markersize=3.5, linewidth=1.5)
        tidy(axes, "inner steps", f"query {written.label(name)}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if inner_steps is not None:
            axes.axvline(inner_steps, color=VERMILLION, linestyle="--", linewidth=1)
            axes.annotate(
                f"trained with {inner_steps}",
                (inner_steps, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=VERMILLION,
            )
    return figure
