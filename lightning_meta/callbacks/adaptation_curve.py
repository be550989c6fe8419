"""Is the number of adaptation steps well chosen?"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.loggers import WandbLogger

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.callbacks.tables import write_csv
from lightning_meta.core import mean_and_ci95
from lightning_meta.viz import adaptation_curve


class AdaptationCurve(Pictures):
    """Query loss and score after 0, 1, ..., `max_steps` inner steps on the first test episodes.

    Writes `<log_dir>/adaptation_curve.csv` (step, loss, loss_ci95, and the metric likewise) and the picture
    `adaptation_curve`. Row k is what a test with `eval_inner_steps=k` of these episodes gives. W&B gets the rows as
    `adaptation/...` over `adaptation/step`, so that its charts lay the curves of several runs over one another. For
    algorithms that have `eval_inner_steps` (MAML and its relatives); others, such as ProtoNet, take no steps and are
    skipped by design, without a word.

    Args:
        episodes: how many test episodes, at most `test_episodes`.
        max_steps: largest number of inner steps.
    """

    def __init__(self, episodes: int = 100, max_steps: int = 10) -> None:
        super().__init__()
        self.episodes, self.max_steps = episodes, max_steps

    def draw(self, replay: Replay, log_dir: Path) -> None:
        module, datamodule = replay.module, replay.datamodule
        if not hasattr(module, "eval_inner_steps"):
            return
        count, steps = min(self.episodes, datamodule.test_episodes), range(self.max_steps + 1)
        # Values of each step S and episode E.
        values_SE = {name: torch.empty(len(steps), count).double() for name in ("loss", module.metric.name)}
        for start in range(0, count, datamodule.eval_meta_batch_size):
            part = slice(start, start + datamodule.eval_meta_batch_size)
            tasks = replay.episodes(range(count)[part])
            for step in steps:
                out = replay.play(tasks, inner_steps=step)
                values_SE["loss"][step, part] = out.loss
                values_SE[module.metric.name][step, part] = module.metric.per_episode(out.preds, tasks.query.y)
        # The formula of the metrics, not the metrics themselves: those would wait for the other ranks.
        curves = {
            name: mean_and_ci95(values.sum(1), values.square().sum(1), torch.tensor(count))
            for name, values in values_SE.items()
        }
        rows: list[dict[str, float]] = [{"step": step} for step in steps]
        for name, curve in curves.items():
            for row, mean, ci95 in zip(rows, *(values.tolist() for values in curve), strict=True):
                row |= {name: mean, f"{name}_ci95": ci95}
        write_csv(log_dir / "adaptation_curve.csv", rows)
        for logger in replay.trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_rows(logger, rows)
        inner_steps = getattr(module, "inner_steps", None)
        self.save(
            adaptation_curve(steps, curves, count, inner_steps, replay.title), "adaptation_curve", replay, log_dir
        )


def _log_rows(logger: WandbLogger, rows: Sequence[dict[str, float]]) -> None:
    run = logger.experiment
    for name in rows[0]:  # the last step is no summary of a curve
        run.define_metric(f"adaptation/{name}", step_metric="adaptation/step", summary="none")
    for row in rows:
        run.log({f"adaptation/{name}": value for name, value in row.items()})
