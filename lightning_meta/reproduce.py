"""The project's numbers by one command: each experiment whose result is missing or too short is trained and tested.

python -m lightning_meta reproduce [NAME or PATTERN ...] [--jobs N] [--hours H] [--list] [-- --KEY VALUE ...]

An experiment is trained in `runs/reproduce/<name>`, in a process of its own, and goes on from the `last.ckpt` it finds
there. So this command may be stopped at any moment and started again: by Ctrl-C, SIGTERM or SIGUSR1, which it hands on
to the trainings for them to save, or by the end of its hours. Several of them may run side by side in one folder, on
several machines too: an experiment that another one is training is left to it.

Exit status: 0 when everything that was named has its result, 1 when a run failed, 75 when work is left, and
128 + signal when a signal stopped it.
"""

import argparse
import difflib
import fcntl
import fnmatch
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

import torch
import yaml

from lightning_meta.benchmark.results_table import HEADER, PLACES, pairs, row, settings, trained_steps
from lightning_meta.callbacks.checkpoint import STOP_SIGNALS, newest_checkpoint
from lightning_meta.composition import compose
from lightning_meta.errors import ConfigError, UserError

WORK_LEFT = 75  # exit status EX_TEMPFAIL: try again later
# Settings that may change while a training is interrupted: they say how long, where and what is shown.
FREE = (*PLACES, "--trainer.max_steps", "--trainer.devices", "--trainer.callbacks", "--data.test_episodes")


class Run(NamedTuple):
    """An experiment to be trained with certain settings.

    Args:
        name: of the result file.
        config: the experiment's file.
        extra: settings beside it, as words of a command line.
        root: where the folders of runs are made.
        result_file: where the result is written.
    """

    name: str
    config: Path
    extra: tuple[str, ...]
    root: Path
    result_file: Path

    @property
    def folder(self) -> Path:
        """Its log and its runs `version_<n>`."""
        return self.root / self.config.stem

    @property
    def subcommand(self) -> str:
        """`fit`, or `test` where the header says that nothing is trained."""
        stated = re.search(r"^# Run: .*lightning_meta (fit|test) ", self.config.read_text(), re.MULTILINE)
        return stated[1] if stated else "fit"

    @property
    def settings(self) -> dict[str, Any]:
        """What it is told, by option: `--data.n_way`."""
        return self._settings(pairs(self.extra))

    def _settings(self, options: Sequence[tuple[str, str]]) -> dict[str, Any]:
        given = _flat({key.removeprefix("--"): yaml.safe_load(value) for key, value in options})
        return {f"--{key.replace('.init_args', '')}": leaf for key, leaf in (_config(self.config) | given).items()}

    @property
    def steps(self) -> int:
        """Outer steps of the whole training; 0 where nothing is trained."""
        return 0 if self.subcommand == "test" else self.settings["--trainer.max_steps"]

    @property
    def last_checkpoint(self) -> Path | None:
        return newest_checkpoint(self.folder, "*/checkpoints/last*.ckpt")

    def command(self, device: str | None) -> list[str]:
        """Words after `python -m lightning_meta` that begin or continue it."""
        words = [
            self.subcommand, "--config", str(self.config), *self.extra,
            "--trainer.logger", "lightning_meta.loggers.OwnFolderCSVLogger",
            "--trainer.logger.save_dir", str(self.root), "--trainer.logger.name", self.config.stem,
            "--trainer.enable_progress_bar", "false",
        ]  # fmt: skip
        if device is not None:
            words += ["--trainer.accelerator", "cpu" if device == "cpu" else "gpu"]
        return [*words, "--ckpt_path", "last"] if self.last_checkpoint else words

    def result(self) -> dict[str, Any] | None:
        """What its result file says, if that is of the whole training with these settings."""
        if not self.result_file.is_file():
            return None
        result = json.loads(self.result_file.read_text())
        asked, had = self.settings, self._settings(settings(result["command"]))
        enough = trained_steps(result) >= self.steps and result["episodes"] >= asked.get("--data.test_episodes", 0)
        return result if enough and not _changed(had, asked) else None

    @contextmanager
    def lock(self) -> Iterator[TextIO | None]:
        """Held by this process, and by those that inherit the file, as long as one of them lives; None: by others."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file

    def check_settings(self) -> None:
        """Refuse to go on with a training that was begun with other settings; note those of one that begins."""
        file, asked = self.folder / "settings.json", json.loads(json.dumps(self.settings, default=str))
        former = json.loads(file.read_text()) if file.is_file() else asked
        if self.last_checkpoint and (changed := _changed(former, asked)):
            raise ConfigError(
                f"{self.last_checkpoint} was trained with other settings ({', '.join(changed[:3])}); restore them, or "
                f"begin anew by moving {self.folder} away or with another --runs."
            )
        write_whole(file, json.dumps(asked, indent=1) + "\n")


class Progress(NamedTuple):
    """How far a training is, from its last checkpoint."""

    step: int
    score: str
    seconds: float

    @staticmethod
    def of(run: Run) -> "Progress":
        if (path := run.last_checkpoint) is None:
            return Progress(0, "", 0.0)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        states = checkpoint["callbacks"]
        best: dict[str, Any] = next(
            (state for key, state in states.items() if key.startswith("EpisodicCheckpoint")), {}
        )
        score = best.get("best_model_score")
        name = str(best.get("monitor") or "").removeprefix("val/")
        percent = name == "acc"
        shown = "" if score is None else f"{name} {100 * score:.2f} %" if percent else f"{name} {score:.4f}"
        return Progress(checkpoint["global_step"], shown, states.get("RunSummary", {}).get("fit_seconds", 0.0))


class Job(NamedTuple):
    """A process that trains a run."""

    run: Run
    process: subprocess.Popen[bytes]
    device: str | None
    started: float
    lock: Any  # the context of `Run.lock`


class Queue:
    """Runs that are trained, so many at once; a failure of one does not stop the others.

    Args:
        slots: how many processes at once.
        devices: `cpu`, numbers of GPUs, or None for what the configuration says; shared out evenly.
        threads: of each process.
        deadline: when all are asked to stop, in the seconds of `time.monotonic`.
    """

    def __init__(self, slots: int, devices: Sequence[str | None], threads: int, deadline: float) -> None:
        self.slots, self.devices, self.threads, self.deadline = slots, devices, threads, deadline
        self.jobs: list[Job] = []
        self.failed: list[Run] = []
        self.signal = 0  # that was received; 0: none
        self._asked_to_stop = False

    def work(self, runs: Sequence[Run]) -> None:
        """Train them, in their order; come back when all have ended or have been stopped."""
        numbers = {*STOP_SIGNALS, signal.SIGINT}
        handlers = {number: signal.signal(number, self._note_signal) for number in numbers}
        waiting = deque(runs)
        try:
            while self.jobs or (waiting and not self._stopping):
                while waiting and len(self.jobs) < self.slots and not self._stopping:
                    self._start(waiting.popleft())
                if self._stopping and not self._asked_to_stop:
                    self._ask_to_stop()
                self._reap()
                time.sleep(0.1)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @property
    def _stopping(self) -> bool:
        return self.signal != 0 or time.monotonic() >= self.deadline

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _start(self, run: Run) -> None:
        lock = run.lock()
        file = lock.__enter__()
        if file is None or run.result():
            say(run, "left to the process that trains it" if file is None else "another process has just finished it")
            lock.__exit__(None, None, None)
            return
        try:
            run.check_settings()
        except UserError as error:
            self._fail(run, str(error))
            lock.__exit__(None, None, None)
            return
        used = Counter(job.device for job in self.jobs)
        device = min(self.devices, key=lambda device: used[device])
        command = [sys.executable, "-m", "lightning_meta", *run.command(device)]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if device not in (None, "cpu"):
            environment["CUDA_VISIBLE_DEVICES"] = _visible_gpu(str(device))
        say(run, f"starts at step {Progress.of(run).step:,} of {run.steps:,}; {run.folder / 'log.txt'}")
        with (run.folder / "log.txt").open("a") as log:
            log.write(f"$ {shlex.join(['python', *command[1:]])}\n")
            log.flush()
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                pass_fds=[file.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process alone, which then asks the others to save
            )  # fmt: skip
        self.jobs.append(Job(run, process, device, time.time(), lock))

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True
        why = signal.Signals(self.signal).name if self.signal else "time is up"
        print(f"{why}: {len(self.jobs)} running, which save and stop", flush=True)
        for job in self.jobs:
            job.process.terminate()

    def _reap(self) -> None:
        for job in [job for job in self.jobs if job.process.poll() is not None]:
            self.jobs.remove(job)
            try:
                self._end(job)
            finally:
                job.lock.__exit__(None, None, None)

    def _end(self, job: Job) -> None:
        run, status = job.run, job.process.returncode
        stopped = self._asked_to_stop and status in (-signal.SIGTERM, 128 + signal.SIGTERM)
        left = max(run.folder.glob("version_*/result.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
        if stopped:
            say(run, f"stopped at step {Progress.of(run).step:,} of {run.steps:,}")
        elif status != 0:
            self._fail(run, f"ended with status {status}: {_last_words(run.folder / 'log.txt')}")
        elif left is None or left.stat().st_mtime < job.started - 1:
            self._fail(run, f"ended without a result.json; see {run.folder / 'log.txt'}")
        else:
            write_whole(run.result_file, left.read_text())
            if run.result():
                say(run, f"done: {run.result_file}")
            else:
                self._fail(run, f"{run.result_file} is not that of {run.steps:,} steps; see {left.parent}")

    def _fail(self, run: Run, why: str) -> None:
        self.failed.append(run)
        say(run, f"FAILED: {why}")


def find_runs(
    patterns: Sequence[str], experiments: Path, runs: Path, results: Path, seeds: Sequence[int], extra: Sequence[str]
) -> list[Run]:
    """The named experiments in the order of their names, each with each seed; all experiments if none is named."""
    configs = {path.stem: path for path in sorted(experiments.rglob("*.yaml"))}
    if not configs:
        raise ConfigError(f"{experiments} has no experiments (*.yaml); give their folder as --experiments.")
    chosen: dict[str, Path] = {}
    for pattern in patterns or ["*"]:
        pattern = Path(pattern).stem if pattern.endswith(".yaml") else pattern
        matching = fnmatch.filter(configs, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, configs, n=3, cutoff=0.3)
            raise ConfigError(f"no experiment of {experiments} is named {pattern}; near: {', '.join(near) or 'none'}.")
        chosen |= {name: configs[name] for name in matching}

    def run(name: str, config: Path, seed: int | None) -> Run:
        if seed is None:
            return Run(name, config, tuple(extra), runs, results / f"{name}.json")
        seeded = f"{name}_seed{seed}"
        words = ("--seed_everything", str(seed), *extra)
        return Run(seeded, config, words, runs / f"seed_{seed}", results / f"{seeded}.json")

    return [run(name, config, seed or None) for seed in seeds for name, config in chosen.items()]


def listing(runs: Sequence[Run]) -> str:
    """What is done, running, stopped or new, how far, how well on meta-validation, and how long it will take."""
    rows = [("experiment", "state", "step", "validation", "left")]
    for run in runs:
        progress, done = Progress.of(run), run.result()
        if done:
            step = trained_steps(done) if run.steps else 0
            rows.append((run.name, "done", f"{step:,} / {run.steps:,}", progress.score, ""))
            continue
        left = ""
        if progress.step and progress.seconds:
            left = duration(progress.seconds / progress.step * max(run.steps - progress.step, 0))
        state = "running" if _is_locked(run) else "stopped" if progress.step else "new"
        rows.append((run.name, state, f"{progress.step:,} / {run.steps:,}", progress.score, left))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def write_whole(path: Path, text: str) -> None:
    """Write beside its place and move there: a kill leaves the former file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def say(run: Run, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {run.name} {what}", flush=True)


def _is_locked(run: Run) -> bool:
    if not (run.folder / "lock").is_file():
        return False
    with run.lock() as file:
        return file is None


def _changed(former: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Settings that make it another training or test, such as `--data.n_way 5 -> 20`."""
    return [
        f"{key} {former.get(key)} -> {asked.get(key)}"
        for key in sorted({*former, *asked})
        if former.get(key) != asked.get(key) and not key.startswith(FREE)
    ]


@cache
def _config(path: Path) -> dict[str, Any]:
    """The experiment's settings by dotted key."""
    return _flat(compose(path))


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted key."""
    if not isinstance(value, dict) or (place and not value):
        return {place: value}
    parts = [_flat(item, f"{place}.{name}".lstrip(".")) for name, item in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}


def _visible_gpu(index: str) -> str:
    """The GPU of that number among those that this process may see, as `CUDA_VISIBLE_DEVICES` names it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[int(index)] if visible else index


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]) + f" ({log})"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main(arguments: Sequence[str]) -> None:
    own, _, extra = (list(part) for part in _split(arguments))
    parser = argparse.ArgumentParser(
        "python -m lightning_meta reproduce",
        description="Train, test and write down each experiment whose result is missing or too short.",
        epilog="Settings after -- are those of every fit: reproduce NAME -- --trainer.max_steps 1500",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="an experiment, or a pattern such as 'maml_*' (all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (%(default)s)")
    parser.add_argument(
        "--devices", type=_words, metavar="D,D", help="cpu, or numbers of GPUs, shared out over the jobs (all GPUs)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of each job (OMP_NUM_THREADS, or cores / jobs)")
    parser.add_argument("--hours", type=float, metavar="H", help="stop within this time, ready to go on (no limit)")
    parser.add_argument("--seeds", type=_words, default=["0"], metavar="S,S", help="seed_everything (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print how far each is, and end")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and end")
    parser.add_argument("--experiments", type=Path, default=Path("configs/experiment"), metavar="DIR")
    parser.add_argument("--results", type=Path, metavar="DIR", help="(EXPERIMENTS/results)")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="(%(default)s)")
    given = parser.parse_intermixed_args(own)
    results = given.results or given.experiments / "results"
    runs = find_runs(given.names, given.experiments, given.runs, results, [int(seed) for seed in given.seeds], extra)
    todo = [run for run in runs if not run.result()]
    devices = given.devices or [str(i) for i in range(torch.cuda.device_count())] or [None]
    if given.list:
        print(listing(runs))
        return
    if given.dry_run:
        for run in todo:
            print(shlex.join(["python", "-m", "lightning_meta", *run.command(devices[0])]))
        return
    threads = given.threads or int(os.environ.get("OMP_NUM_THREADS", max(1, _cores() // given.jobs)))
    limit = float("inf") if given.hours is None else 3600 * given.hours
    # Before its end, time to finish a step or a validation and to save.
    deadline = time.monotonic() + limit - min(60, limit / 10)
    queue = Queue(given.jobs, devices, threads, deadline)
    queue.work(todo)
    done = [(run, result) for run in runs if (result := run.result())]
    if done:
        print("\n".join([HEADER, *(row(result, run.config) for run, result in done)]))
    left = [run.name for run in runs if not run.result()]
    print(f"{len(done)} of {len(runs)} have their result." + (f" Left: {', '.join(left)}." if left else ""))
    sys.exit(128 + queue.signal if queue.signal else 1 if queue.failed else WORK_LEFT if left else 0)


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """What is before the first `--`, it, and what is after."""
    place = list(arguments).index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place : place + 1], arguments[place + 1 :]
