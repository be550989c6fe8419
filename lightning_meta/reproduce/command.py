"""The project's numbers by one command: each experiment whose result is missing or too short is trained and tested.

python -m lightning_meta reproduce [NAME or PATTERN ...] [--jobs N] [--hours H] [--list] [-- --KEY VALUE ...]

An experiment is trained in `runs/reproduce/<name>`, in a process of its own, and goes on from the `last.ckpt` it finds
there. So this command may be stopped at any moment and started again: by Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP, which it
hands on to the trainings for them to save, or by the end of its hours. Several of them may run side by side in one
folder, on several machines too: an experiment that another one is training is left to it. Lines
`# Also: [NAME:] --KEY VALUE ...` in the header of an experiment name further tests of its best checkpoint,
`results/<experiment>_<name>.json`; a line `# Seeds: 0,1,2` names the seeds of its trainings, whose results are one row.

A machine without a network hands its runs on in a file: `--export FILE` there, `--import FILE` here, or `--import`
of a folder with what runs left, see `exchange.py`.

Exit status: 0 when everything that was named has its results, 1 when a run failed, 75 when work is left, and
128 + signal when a signal stopped it.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from lightning_meta.checkpoints import REPRODUCED, RUNS
from lightning_meta.cli.names import with_paths
from lightning_meta.cli.seeds import numbers_of
from lightning_meta.errors import ConfigError, UserError
from lightning_meta.reproduce.exchange import Left, find, opened, pack, take_checkpoint, take_result
from lightning_meta.reproduce.queue import Queue
from lightning_meta.reproduce.runs import Progress, Run, differences, find_runs, label
from lightning_meta.results.table import HEADER, over_seeds, row, trained_steps

WORK_LEFT = 75  # exit status EX_TEMPFAIL: try again later


def listing(runs: Sequence[Run]) -> str:
    """What is done, running, stopped or new, how far, how well on meta-validation, and what and how long is left."""
    rows = [("experiment", "state", "step", "validation", "left")]
    for run in runs:
        progress, result, missing = Progress.of(run), run.result(), run.missing()
        step = trained_steps(result) if result and run.steps else progress.step
        state = "running" if missing and run.is_locked() else "stopped" if progress.step else "new"
        left = ""
        if result:
            state = state if state == "running" else "done"
            left = ", ".join(evaluation.suffix for evaluation in missing)
        elif progress.step and progress.seconds:
            left = duration(progress.seconds / progress.step * max(run.steps - progress.step, 0))
        rows.append((run.name, state, f"{step:,} / {run.steps:,}", progress.score, left))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def check_place(runs: Sequence[Run], recipes: Sequence[Run]) -> None:
    """Refuse to write the results of other trainings in place of the recipes' own."""
    for run, recipe in zip(runs, recipes, strict=True):
        place, own = (one.evaluations[0].result_file for one in (run, recipe))
        if place == own and (changed := differences(recipe.settings, run.settings)):
            raise ConfigError(
                f"{', '.join(changed[:3])} makes it another training than that of {recipe.config}, whose result is "
                f"{own}; name it with --suffix NAME, or give a folder for its result with --results DIR."
            )


def take_over(source: Path, runs: Sequence[Run], all_named: bool) -> bool:
    """Import what runs left at `source` for these runs, see `exchange`; whether nothing was refused.

    Args:
        source: a folder, or a file that `pack` has made.
        runs: which results are for which of them, their names tell.
        all_named: they are all that there are, so that another name is a mistake.
    """
    named = {name: run for run in runs for name in (label(run.folder), *(one.name for one in run.evaluations))}
    takers: dict[str, Callable[[Left, Run], str]] = {"result.json": take_result, "last.ckpt": take_checkpoint}
    refused = taken = 0
    with opened(source) as folder:
        for left, file, take in [(left, *taker) for left in find(folder) for taker in takers.items()]:
            if file not in left.files or (left.name not in named and not all_named):
                continue
            taken += 1
            try:
                if left.name not in named:
                    raise ConfigError(f"{left.files[file]}: {left.name} is no experiment here; --seeds names seeds.")
                print(f"{left.name}: {take(left, named[left.name])}", flush=True)
            except UserError as error:
                refused += 1
                print(f"error: {error}", flush=True)
    print(f"{taken - refused} of {taken} files were taken over or were there already.")
    return taken > 0 and refused == 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Sequence[str]]:
    """Its own options, and the settings after `--`."""
    place = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        "python -m lightning_meta reproduce",
        description="Train, test and write down each experiment whose result is missing or too short.",
        epilog="Settings after -- are those of every training: reproduce NAME -- --trainer.max_steps 1500",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="an experiment, or a pattern such as 'maml_*' (all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (%(default)s)")
    parser.add_argument(
        "--devices", type=_words, metavar="D,D", help="cpu, or numbers of GPUs, shared out over the jobs (all GPUs)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of each job (cores / jobs)")
    parser.add_argument("--hours", type=float, metavar="H", help="stop within this time, ready to go on (no limit)")
    parser.add_argument(
        "--seeds", type=numbers_of, metavar="S,S", help="seed_everything (those that an experiment states, or 0)"
    )
    parser.add_argument("--suffix", default="", metavar="NAME", help="of what settings after -- make")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print how far each is, and end")
    what.add_argument("--dry-run", action="store_true", help="print the commands, and end")
    what.add_argument(
        "--partial", action="store_true", help="train nothing; test the best checkpoint of unfinished trainings"
    )
    what.add_argument("--export", type=Path, metavar="FILE.tgz", help="pack what the runs left, and end")
    what.add_argument(
        "--import", type=Path, metavar="PLACE", dest="source", help="take over what runs left in a folder or file"
    )
    parser.add_argument("--most-mb", type=float, default=float("inf"), metavar="N", help="size of FILE.tgz (no limit)")
    parser.add_argument("--experiments", type=Path, default=Path("configs/experiment"), metavar="DIR")
    parser.add_argument("--results", type=Path, metavar="DIR", help="(results beside each experiment)")
    parser.add_argument("--runs", type=Path, default=RUNS / REPRODUCED, metavar="DIR", help="(%(default)s)")
    return parser.parse_intermixed_args(arguments[:place]), with_paths(arguments[place + 1 :])


def main(arguments: Sequence[str]) -> None:
    given, extra = parse(arguments)
    recipes = find_runs(given.names, given.experiments, given.runs, None, given.seeds, [])
    runs = find_runs(given.names, given.experiments, given.runs, given.results, given.seeds, extra, given.suffix)
    check_place(runs, recipes)
    devices = given.devices or [str(i) for i in range(torch.cuda.device_count())] or [None]
    if given.list:
        print(listing(runs))
    elif given.dry_run:
        for run in runs:
            for evaluation in run.missing():
                print(shlex.join(["python", "-m", "lightning_meta", *evaluation.command(devices[0])]))
    elif given.export:
        left_out = pack(runs, given.runs, given.export, 1e6 * given.most_mb)
        print("\n".join(f"left out: {what}" for what in left_out))
        print(f"{given.export}: {given.export.stat().st_size / 1e6:.1f} MB")
    elif given.source:
        sys.exit(0 if take_over(given.source, runs, all_named=not given.names) else 1)
    else:
        limit = float("inf") if given.hours is None else 3600 * given.hours
        # Before its end, time to finish a step or a validation and to save.
        deadline = time.monotonic() + limit - min(60, limit / 10)
        threads = given.threads or max(1, _cores() // given.jobs)
        work(runs, Queue(given.jobs, devices, threads, deadline, given.partial))


def work(runs: Sequence[Run], queue: Queue) -> NoReturn:
    """Train and test what is to do, print the results, and end with the exit status."""
    todo = [run for run in runs if run.missing()]
    if queue.partial:
        todo = [run for run in todo if not run.result() and run.best_checkpoint]
    queue.work(todo)
    shown = todo if queue.partial else runs
    evaluations = [one for run in shown for one in run.evaluations if one.result() or (queue.partial and one.written())]
    configs = {one.run.config.stem: one.run.config for one in evaluations}
    results = {one.name: one.written() or {} for one in evaluations}
    together = [result for result in over_seeds(results).values() if "seeds" in result]
    table = [row(result, configs[result["experiment"]]) for result in [*results.values(), *together]]
    if table:
        print("\n".join([HEADER, *table]))
    left = [run.name for run in runs if run.missing()]
    print(f"{len(runs) - len(left)} of {len(runs)} have their results. Left: {', '.join(left) or 'nothing'}.")
    sys.exit(128 + queue.signal if queue.signal else 1 if queue.failed else WORK_LEFT if left else 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
