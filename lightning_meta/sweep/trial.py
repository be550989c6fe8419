"""One trial: its run as a process, and what the study hears of it."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_meta.cli import children
from lightning_meta.cli.children import Process
from lightning_meta.errors import UsageError
from lightning_meta.reproduce.queue import last_words, say
from lightning_meta.sweep.file import Scalar
from lightning_meta.sweep.report import cell
from lightning_meta.sweep.study import Search

if TYPE_CHECKING:
    from optuna import Trial


class Curve:
    """What a trial's run has logged of the metric so far, reported to the study once.

    Args:
        trial: whose run it is.
        folder: of its runs.
        metric: name of a column of `metrics.csv`.
    """

    def __init__(self, trial: "Trial", folder: Path, metric: str) -> None:
        self.trial, self.folder, self.metric = trial, folder, metric
        self.values: list[float] = []
        self.pruned = False

    @property
    def file(self) -> Path | None:
        """Of the newest run."""
        return max(self.folder.glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime_ns, default=None)

    @property
    def missing(self) -> str:
        """What to say where there is no value."""
        if self.values:
            return f"{self.metric} is nan in each of {len(self.values)} validations"
        columns = self.file.read_text().partition("\n")[0].split(",") if self.file else []
        there = ", ".join(name for name in columns if name.startswith("val/"))
        there = f"; there are: {there}" if there else ", nor another val/..."
        return f"{self.folder} has no {self.metric} in metrics.csv{there}"

    def read(self) -> None:
        """Report the validations that have been made since."""
        found = column(self.file, self.metric) if self.file else []
        for step, value in enumerate(found[len(self.values) :], len(self.values) + 1):
            if step not in self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values:
                self.trial.report(value, step)
            self.values.append(value)

    def watch(self, process: Process) -> None:
        """Ask the run to stop when the pruner says that it is none of the best."""
        before = len(self.values)
        self.read()
        if len(self.values) > before and not self.pruned and self.trial.should_prune():
            self.pruned = True
            process.terminate()


def column(file: Path, name: str) -> list[float]:
    """The values of a column of a CSV file that is being written: of its whole lines, without empty cells."""
    whole = file.read_text().rpartition("\n")[0].splitlines()
    return [float(row[name]) for row in csv.DictReader(whole) if row.get(name)]


def play(search: Search, trial: "Trial", values: Mapping[str, Scalar], file: int) -> int:
    """Run a trial and tell the study how it ended; the signal that stopped it, 0 for none.

    Raises `UsageError` where its command is none, for those after it would seldom be better.
    """
    sweep, folder, study = search.sweep, search.folder(trial.number), search.study
    name, states = f"trial {trial.number}", search.optuna.trial.TrialState
    going_on = [*folder.glob("version_*/checkpoints/last*.ckpt")]
    command = [
        *sweep.words(values), "--name", f"{sweep.name}/{folder.name}", "--test_after_fit", "false",
        *(["--ckpt_path", "last"] if going_on else []),
    ]  # fmt: skip
    said = ", ".join(f"{key} {cell(values[key])}" for key in sweep.swept) or "constants"
    say(name, f"{'goes on' if going_on else 'starts'}: {said}; {folder / 'log.txt'}")
    curve = Curve(trial, folder, sweep.metric)
    with (folder / "log.txt").open("ab") as log:
        status, received = children.run(command, keep_open=[file], watch=curve.watch, log=log)
    curve.read()
    known = [value for value in curve.values if not math.isnan(value)]
    if curve.pruned and status:  # else it had come to its end when it was asked to stop
        study.tell(trial, state=states.PRUNED)
        say(name, f"pruned after {len(curve.values)} validations, {sweep.metric} {curve.values[-1]:.4f}")
    elif received or status in children.STOPPED:
        return received or status % 128
    elif status or not known:
        study.tell(trial, state=states.FAIL)
        last = last_words(folder / "log.txt")
        if status == UsageError.status:
            raise UsageError(f"{name}, {said}: {last.removeprefix('error: ')}; the same command goes on without it.")
        say(name, f"FAILED: {f'it ended with status {status}: {last}' if status else curve.missing}")
    else:
        best = (max if sweep.maximize else min)(known)
        study.tell(trial, best)
        say(name, f"done: {sweep.metric} {best:.4f}, the best of {len(curve.values)} validations")
    return 0
