"""What does `fit` cost beside the outer steps? A table in Markdown.

python -m lightning_meta benchmark fit [NAME ...]

Each experiment is run by the command line with all its callbacks and loggers; then the same module takes as many bare
steps: draw the episodes, adapt, meta-gradient, optimizer. The two alternate. Validation is timed apart, and charged to
the steps between two validations, 500 by default.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl

from lightning_meta import cli
from lightning_meta.benchmark.speed import stopwatch
from lightning_meta.cli.names import found
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.modules import EpisodicModule

EXPERIMENTS = (
    "configs/experiment/initialize/maml_glyphs_5w1s.yaml",
    "configs/experiment/compare/protonet_glyphs_5w1s.yaml",
)
WARMUPS, STEPS, ALTERNATIONS = 5, 60, 5
STEPS_BETWEEN_VALIDATIONS = 500  # the default of data.steps_per_epoch
HEADER = "| experiment | bare step (ms) | overhead of fit | validation | together |\n|---|---|---|---|---|"


@dataclass
class StepClock(pl.Callback):
    """Seconds of a step, from the start of one to the start of the next, and of the validation."""

    starts: list[float] = field(default_factory=list)
    validation: float = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_validation_start(self, *args: Any) -> None:
        self.validation = -time.perf_counter()

    def on_validation_end(self, *args: Any) -> None:
        self.validation += time.perf_counter()

    @property
    def seconds(self) -> float:
        return (self.starts[-1] - self.starts[WARMUPS]) / (len(self.starts) - 1 - WARMUPS)


def fit(experiment: str) -> Any:
    """A short training; its trainer, with a `StepClock` among the callbacks."""
    with tempfile.TemporaryDirectory() as folder:
        options = (
            f"--trainer.max_steps {STEPS} --data.steps_per_epoch {STEPS} --trainer.enable_progress_bar false "
            f"--trainer.callbacks+ lightning_meta.benchmark.fit.StepClock --trainer.default_root_dir {folder} "
            f"--trainer.logger.init_args.save_dir {folder} --test_after_fit false"
        )
        return cli.main(["fit", "--config", experiment, *options.split()]).trainer


def bare_step(trainer: pl.Trainer) -> float:
    """Seconds of a step of the same module without the Trainer."""
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, EpisodicModule)
    assert isinstance(data, EpisodicDataModule)
    dataset, size, optimizer = data.dataset("train"), data.meta_batch_size, module.optimizer(module.parameters())
    module.train()

    def steps(count: int) -> None:
        for step in range(count):
            optimizer.zero_grad()
            module.play(dataset.__getitems__(range(step * size, (step + 1) * size))).loss.mean().backward()
            optimizer.step()

    steps(WARMUPS)
    return stopwatch(lambda: steps(STEPS)) / STEPS


def row(experiment: str) -> str:
    """One line of the table: medians, with the range of the overhead."""
    overheads, bare, validations = [], [], []
    for _ in range(ALTERNATIONS):
        trainer = fit(experiment)
        clock = next(callback for callback in trainer.callbacks if isinstance(callback, StepClock))
        bare.append(bare_step(trainer))
        overheads.append(clock.seconds / bare[-1] - 1)
        validations.append(clock.validation / (STEPS_BETWEEN_VALIDATIONS * bare[-1]))
    overhead, validation = statistics.median(overheads), statistics.median(validations)
    return (
        f"| {experiment} | {1000 * statistics.median(bare):.0f} | {overhead:.1%} ({min(overheads):.1%} to "
        f"{max(overheads):.1%}) | {validation:.1%} | {overhead + validation:.1%} |"
    )


def main(arguments: Sequence[str]) -> None:
    """Print the table, for the experiments named or for two."""
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark fit", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an experiment, or its file (two on Glyphs)")
    given = parser.parse_args(arguments)
    experiments = [str(found("experiment", name)) for name in given.names] or EXPERIMENTS
    print(HEADER)
    for experiment in experiments:
        print(row(experiment), flush=True)
