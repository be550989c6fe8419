"""Processes that train runs and test their checkpoints, so many at once; they save when they are asked to stop."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

from lightning_meta.cli.children import STOPPED
from lightning_meta.errors import ConfigError, DataError, UserError
from lightning_meta.reproduce.runs import Evaluation, Progress, Run
from lightning_meta.results.table import trained_steps
from lightning_meta.signals import STOP_SIGNALS


@dataclass
class Job:
    """A run in work: a process is at the first of the evaluations that are left.

    `held` has the run's lock, whose file the process inherits.
    """

    run: Run
    device: str | None
    held: ExitStack
    lock: TextIO
    left: deque[Evaluation]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0


class Queue:
    """Runs that are trained and tested, so many at once; a failure of one does not stop the others.

    Args:
        slots: how many processes at once.
        devices: `cpu`, numbers of GPUs, or None for what the configuration says; shared out evenly.
        threads: of each process.
        deadline: when all are asked to stop, in the seconds of `time.monotonic`.
        partial: train nothing; test the best checkpoint so far.
    """

    def __init__(
        self, slots: int, devices: Sequence[str | None], threads: int, deadline: float, partial: bool = False
    ) -> None:
        self.slots, self.devices, self.threads, self.deadline, self.partial = slots, devices, threads, deadline, partial
        self.jobs: list[Job] = []
        self.failed: list[Run] = []
        self.signal = 0  # that was received; 0: none
        self._asked_to_stop = False

    def work(self, runs: Sequence[Run]) -> None:
        """Train and test them, in their order; come back when all have ended or have been stopped."""
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        handlers = {number: signal.signal(number, self._note_signal) for number in heeded}
        waiting = deque(runs)
        try:
            while self.jobs or (waiting and not self._stopping):
                while waiting and len(self.jobs) < self.slots and not self._stopping:
                    self._take(waiting.popleft())
                if self._stopping and not self._asked_to_stop:
                    self._ask_to_stop()
                for job in [job for job in self.jobs if job.process is not None and job.process.poll() is not None]:
                    self._end(job)
                time.sleep(0.1)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @property
    def _stopping(self) -> bool:
        return self.signal != 0 or time.monotonic() >= self.deadline

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _take(self, run: Run) -> None:
        with ExitStack() as held:
            lock = held.enter_context(run.lock())
            missing = run.missing()
            if lock is None or not missing:
                say(run.name, "is left to the process that trains it" if lock is None else "has just been finished")
                return
            try:
                run.check_settings()
            except UserError as error:
                self._fail(run, run.name, str(error))
                return
            used = Counter(job.device for job in self.jobs)
            device = min(self.devices, key=lambda device: used[device])
            job = Job(run, device, held.pop_all(), lock, deque(missing))
        self.jobs.append(job)
        self._go_on(job)

    def _go_on(self, job: Job) -> None:
        """Start a process for what is left; let go of the run if there is nothing, or no time."""
        while job.left and not self._stopping:
            try:
                self._start(job, job.left[0])
                return
            except UserError as error:
                self._fail(job.run, job.left.popleft().name, str(error))
        self.jobs.remove(job)
        job.held.close()

    def _start(self, job: Job, evaluation: Evaluation) -> None:
        run, log_file = job.run, job.run.folder / "log.txt"
        if evaluation.suffix and run.steps and run.best_checkpoint is None:
            raise ConfigError(f"{run.folder} has no best checkpoint to test; bring it by --import, or train again.")
        command = [sys.executable, "-m", "lightning_meta", *evaluation.command(job.device, self.partial)]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if job.device not in (None, "cpu"):
            environment["CUDA_VISIBLE_DEVICES"] = _visible_gpu(str(job.device))
        say(evaluation.name, f"starts at step {Progress.of(run).step:,} of {run.steps:,}; {log_file}")
        with log_file.open("a") as log:
            log.write(f"$ {shlex.join(['python', *command[1:]])}\n")
            log.flush()
            job.started = time.time()
            job.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                pass_fds=[job.lock.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process alone, which then asks the others to save
            )  # fmt: skip

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True
        why = signal.Signals(self.signal).name if self.signal else "time is up"
        print(f"{why}: {len(self.jobs)} running, which save and stop", flush=True)
        for job in self.jobs:
            if job.process is not None:
                job.process.terminate()

    def _end(self, job: Job) -> None:
        """Say what the process that has ended came to, and go on with what is left of the run."""
        assert job.process is not None
        run, evaluation, status = job.run, job.left.popleft(), job.process.returncode
        left = max(run.folder.glob("version_*/result.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
        made = left is not None and left.stat().st_mtime >= job.started - 1
        failure = ""
        if self._asked_to_stop and (status in STOPPED or (status == 0 and not made)):  # the latter in the test
            say(evaluation.name, f"stopped at step {Progress.of(run).step:,} of {run.steps:,}")
            job.left.clear()
        elif status != 0:
            failure = f"ended with status {status}: {last_words(run.folder / 'log.txt')}"
        elif left is None or not made:
            failure = f"ended without a result.json; see {run.folder / 'log.txt'}"
        else:
            try:
                failure = self._write(evaluation, left)
            except DataError as error:
                failure = f"{error} ({run.folder / 'log.txt'})"
        if failure:
            self._fail(run, evaluation.name, failure)
            if not evaluation.suffix:
                job.left.clear()  # they are of the same weights
        self._go_on(job)

    def _write(self, evaluation: Evaluation, left: Path) -> str:
        """Take over the result that a process left; what is wrong with it, if anything is."""
        run, result = evaluation.run, json.loads(left.read_text())
        if not evaluation.write(result):
            say(evaluation.name, f"keeps the result of a longer training; of {trained_steps(result):,} steps: {left}")
        elif evaluation.result():
            say(evaluation.name, f"done: {evaluation.result_file}")
        elif self.partial and not evaluation.unlike(result):
            say(evaluation.name, f"{trained_steps(result):,} of {run.steps:,} steps: {evaluation.result_file}")
        else:
            return f"{evaluation.result_file} is not that of {run.steps:,} steps; see {left.parent}"
        return ""

    def _fail(self, run: Run, name: str, why: str) -> None:
        self.failed.append(run)
        say(name, f"FAILED: {why}")


def say(name: str, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name} {what}", flush=True)


def _visible_gpu(index: str) -> str:
    """The GPU of that number among those that this process may see, as `CUDA_VISIBLE_DEVICES` names it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[int(index)] if visible else index


def last_words(log: Path) -> str:
    """The error that a log ends with, or its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "nothing was said"
    return next((line for line in reversed(lines) if line.startswith("error: ")), last) + f" ({log})"
