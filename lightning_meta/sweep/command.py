"""Sweeps without a server: the files that `wandb agent` takes, run through Optuna.

python -m lightning_meta sweep FILE [--trials N] [--storage FILE]

FILE is a sweep in W&B's format, `configs/sweep/<name>.yaml`, or its name. Method `grid` tries all combinations,
`random` draws them, and `bayes` is Optuna's tree-structured Parzen estimator. Trials are chosen by the validation
episodes, and stopped early by them where the file asks for it (`early_terminate`); no trial is tested. The command that
tests the best one is printed at the end.

Each trial is a training of its own, `runs/<sweep>/trial_<n>`. Its storage is one file, so that several of these
commands may share a sweep, on several machines too where they share the folder. Stopped or killed, and started again,
a sweep goes on, and so does the trial that it was at; one that failed is not run again. Draws of trial n depend on n
and on the trials before it, not on the process that runs it.

Below `runs/<sweep>/`: `optuna.journal` (the storage), `study.txt` (whose trials these are), `trials.csv`, and Optuna's
pictures `curves.png` (validation by validation), `history.png`, `parallel_coordinates.png` and `importances.png`.

Exit status: 0 when all trials are done, 1 when some have failed, now or before, 75 when others still run some, 2 when
the command line refuses what is tried, and 128 + signal when a signal stopped it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_meta.cli.names import found
from lightning_meta.cli.usage import PROGRAM
from lightning_meta.errors import UsageError
from lightning_meta.reproduce.command import WORK_LEFT
from lightning_meta.sweep.file import read
from lightning_meta.sweep.report import NO_TRIALS, left, report
from lightning_meta.sweep.study import Search
from lightning_meta.sweep.trial import play


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        f"{PROGRAM} sweep",
        description="Run the sweeps of W&B's format through Optuna, without a server.",
        epilog="Several of these commands may share a sweep; each runs one trial after the other.",
    )
    parser.add_argument("file", metavar="FILE", help="configs/sweep/<name>.yaml, or its name")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="how many in all; 0 only reports (a grid: all; others: run_cap)"
    )
    parser.add_argument("--storage", type=Path, metavar="FILE", help="of the trials (runs/<name>/optuna.journal)")
    given = parser.parse_args(arguments)
    if given.trials is not None and given.trials < 0:
        raise UsageError(f"--trials {given.trials} must be 0 or more; 0 only reports.")
    sweep = read(found("sweep", given.file))
    limit = sweep.cap if given.trials is None else min(given.trials, sweep.cap or given.trials)
    if limit is None:
        raise UsageError(f"a sweep by {sweep.method} has no end: give --trials N, or run_cap in {given.file}.")
    storage = given.storage or sweep.folder / "optuna.journal"
    if not limit and not storage.exists():
        print(NO_TRIALS)
        sys.exit(0)
    if limit:
        sweep.check()
    search, stopped = Search(sweep, storage, limit), 0
    while not stopped:
        with search.claim() as claimed:
            if claimed is None:
                break
            stopped = play(search, *claimed)
    print("\n".join(["", report(search), *left(search, stopped > 0)]))
    unfinished = WORK_LEFT if search.states("RUNNING") else 0
    sys.exit(128 + stopped if stopped else 1 if search.states("FAIL") else unfinished)
