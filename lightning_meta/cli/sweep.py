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
import csv
import json
import math
import os
import platform
import re
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml

from lightning_meta.cli import children
from lightning_meta.cli.children import Process
from lightning_meta.cli.names import RUNS, found, run_folder, suggestion
from lightning_meta.cli.trainer import resolve
from lightning_meta.cli.usage import PROGRAM
from lightning_meta.errors import ConfigError, UsageError, reason
from lightning_meta.extras import need
from lightning_meta.reports.tables import write_csv
from lightning_meta.reproduce.command import WORK_LEFT
from lightning_meta.reproduce.queue import last_words, say
from lightning_meta.reproduce.runs import lock

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

KEYS = {
    "program", "method", "metric", "parameters", "command", "early_terminate", "run_cap", "name", "description",
    "project", "entity",
}  # fmt: skip
METHODS = ("grid", "random", "bayes")
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's
NO_TRIALS = "No trials yet."
MACHINE = "machine"  # an attribute of trials: who runs it
SPACE, IDENTITY = "sweep", "id"  # attributes of studies: what is swept, and which one it is
OWNER = "study.txt"  # in the folder of a sweep: the identity of the study whose trials are there, and its storage

Scalar = str | int | float | bool | None


class Parameter(NamedTuple):
    """What is drawn for one option.

    Args:
        choices: the values, where they are listed.
        low: the least value, where it is a range.
        high: the largest.
        whole: the range is of whole numbers.
        log: it is drawn uniformly by its logarithm.
        step: between the values, where they are a grid.
    """

    choices: tuple[Scalar, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    step: float | None = None

    def suggest(self, trial: "Trial", name: str) -> Scalar:
        if self.choices is not None:
            return self.choices[0] if len(self.choices) == 1 else trial.suggest_categorical(name, self.choices)
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    @property
    def example(self) -> Scalar:
        if self.choices is not None:
            return self.choices[0]
        return int(self.low) if self.whole else (self.low + self.high) / 2

    def listed(self, name: str) -> tuple[Scalar, ...]:
        """All values, for a grid."""
        if self.choices is not None:
            return self.choices
        if self.whole and not self.log:
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        raise ConfigError(f"{name}: a grid needs `values`, or whole numbers from `min` to `max`.")


class Sweep(NamedTuple):
    """A sweep file.

    Args:
        name: of the file.
        method: one of `METHODS`.
        metric: what is looked at, such as `val/acc`.
        maximize: larger is better.
        parameters: by option without dashes.
        command: of a run, with W&B's places to fill.
        program: what stands in the place `${program}`.
        early_terminate: W&B's settings; empty for none.
        cap: how many runs it has; None for no end.
    """

    name: str
    method: str
    metric: str
    maximize: bool
    parameters: Mapping[str, Parameter]
    command: Sequence[str]
    program: str
    early_terminate: Mapping[str, Any]
    cap: int | None

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def swept(self) -> dict[str, Parameter]:
        """Without constants."""
        return {name: one for name, one in self.parameters.items() if one.choices is None or len(one.choices) > 1}

    @property
    def space(self) -> str:
        """What must not change while trials are added."""
        return repr((self.method, self.metric, self.maximize, sorted(self.parameters.items()), list(self.command)))

    def words(self, values: Mapping[str, Scalar]) -> list[str]:
        """The command of a run, as W&B's agent makes it."""
        flags = [f"{name}={'null' if value is None else value}" for name, value in values.items()]
        places = {
            "env": ["/usr/bin/env"],
            "interpreter": [sys.executable],
            "program": [self.program],
            "args": [f"--{flag}" for flag in flags],
            "args_no_hyphens": flags,
            "args_no_equals": [word for flag in flags for word in f"--{flag}".split("=", 1)],
        }
        words: list[str] = []
        for word in map(str, self.command):
            if place := re.fullmatch(r"\$\{(\w+)\}", word):
                if place[1] not in places:
                    raise ConfigError(f"{self.name}: command: {word} is not known; there are: {', '.join(places)}.")
                words += places[place[1]]
            else:
                words.append(re.sub(r"\$\{envvar:(\w+)\}", lambda name: os.environ.get(name[1], name[1]), word))
        if "fit" not in words or "lightning_meta" not in words[: words.index("fit")]:
            raise ConfigError(f"{self.name}: command: it must be one of `{PROGRAM} fit`, but is: {' '.join(words)}")
        return words

    def check(self) -> None:
        """Resolve one of its commands here: what is misspelt is said before anything is run or written."""
        words = self.words({name: one.example for name, one in self.parameters.items()})
        resolve(words[words.index("fit") :])


# ---- the file -------------------------------------------------------------------------------------------------------


def read(path: Path) -> Sweep:
    """Read a sweep file. Raises `ConfigError` where it asks for what is not done here."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {reason(error)}") from error
    if not isinstance(content, dict) or not content.keys() & {"method", "metric", "parameters"}:
        raise ConfigError(
            f"{path} is no sweep: it has no method, metric and parameters, as those of configs/sweep/ do."
        )
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{path}: {key} is not known.{suggestion(str(key), KEYS)}")
    method, given = content.get("method"), content.get("parameters")
    if method not in METHODS:
        raise ConfigError(f"{path}: method={method} must be one of {', '.join(METHODS)}.")
    metric, maximize = objective(path, content.get("metric"))
    if not isinstance(given, dict) or not given:
        raise ConfigError(
            f"{path}: parameters={given} must be options with what is tried: parameters: {{model.inner_lr: {{values: "
            "[0.1, 0.2]}}."
        )
    parameters = {str(key): parameter(str(key), value) for key, value in given.items()}
    early, cap = stopping(path, content.get("early_terminate")), content.get("run_cap")
    if cap is not None and not _whole(cap, 1):
        raise ConfigError(f"{path}: run_cap={cap} must be a whole number from 1 on; without one there is no end.")
    if method == "grid":
        count = math.prod(len(one.listed(key)) for key, one in parameters.items())
        cap = min(cap or count, count)
    command = content.get("command") or DEFAULT_COMMAND
    if not isinstance(command, Sequence) or isinstance(command, str):
        raise ConfigError(f"{path}: command={command} must be a list of words, as in configs/sweep/.")
    program = str(content.get("program", "lightning_meta"))
    sweep = Sweep(path.stem, method, metric, maximize, parameters, command, program, early, cap)
    sweep.words({})
    return sweep


def objective(path: Path, given: Any) -> tuple[str, bool]:
    """The name of the metric, and whether larger is better. Raises `ConfigError`."""
    if not isinstance(given, dict) or "name" not in given:
        said = "there is no metric" if given is None else f"metric={given} has no name"
        raise ConfigError(f"{path}: {said}; it needs metric: {{name: val/..., goal: maximize or minimize}}.")
    name, goal = str(given["name"]), given.get("goal", "minimize")
    if not name.startswith("val/"):
        raise ConfigError(
            f"{path}: metric.name={name}: trials are chosen by the validation episodes, so it must be one of val/..., "
            "such as val/acc; what was chosen by test episodes could not be reported on them."
        )
    if goal not in ("maximize", "minimize"):
        raise ConfigError(f"{path}: metric.goal={goal} must be maximize or minimize.")
    return name, goal == "maximize"


def stopping(path: Path, given: Any) -> dict[str, Any]:
    """W&B's settings of `early_terminate`; empty for none. Raises `ConfigError`."""
    if not given:
        return {}
    asked = given if isinstance(given, dict) else {}
    if asked.get("type") != "hyperband" or not ("min_iter" in asked or {"max_iter", "s"} <= asked.keys()):
        raise ConfigError(
            f"{path}: early_terminate={given} must be of the type hyperband, with min_iter, or with max_iter and s."
        )
    for key, least in {"min_iter": 1, "max_iter": 1, "s": 0, "eta": 2}.items():
        if key in asked and not _whole(asked[key], least):
            raise ConfigError(f"{path}: early_terminate.{key}={asked[key]} must be a whole number from {least} on.")
    return asked


def parameter(name: str, given: Any) -> Parameter:
    """One entry of `parameters`, by W&B's rules for what is left out. Raises `ConfigError`."""
    given = given if isinstance(given, dict) else {"value": given}
    kind = str(given.get("distribution") or _kind(name, given))
    low, high, step = (given.get(key) for key in ("min", "max", "q"))
    if kind == "constant":
        return Parameter((_scalar(given.get("value")),))
    if kind == "categorical":
        values = given.get("values")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{name}: values={values} must be a list with values in it.")
        return Parameter(tuple(_scalar(value) for value in values))
    ranges = {
        "int_uniform": Parameter(whole=True),
        "uniform": Parameter(),
        "q_uniform": Parameter(step=1 if step is None else step),
        "log_uniform_values": Parameter(log=True),
        "log_uniform": Parameter(log=True),
    }
    if kind not in ranges:
        known = ("constant", "categorical", *ranges)
        raise ConfigError(f"{name}: distribution={kind} is not done here; there are: {', '.join(known)}.")
    if step is not None and not (_finite(step) and step > 0):
        raise ConfigError(f"{name}: q={step} must be a number above 0.")
    if not (_finite(low) and _finite(high) and low < high):
        raise ConfigError(f"{name}: min={low} and max={high} must be numbers, of which max is larger.")
    if kind == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        raise ConfigError(f"{name}: min={low} and max={high} must be whole numbers.")
    if kind == "log_uniform":  # W&B's ends are exponents of e
        if high > 700:
            raise ConfigError(f"{name}: e^max is too large for max={high}; values themselves: log_uniform_values.")
        low, high = math.exp(low), math.exp(high)
    if kind.startswith("log") and low <= 0:
        raise ConfigError(f"{name}: min={low} has no logarithm; it must be above 0.")
    return ranges[kind]._replace(low=low, high=high)


def _kind(name: str, given: Mapping[str, Any]) -> str:
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical"
    if not {"min", "max"} <= given.keys():
        raise ConfigError(
            f"{name}: give value, values, or min and max; it has {', '.join(map(str, given)) or 'nothing'}."
        )
    return "int_uniform" if all(isinstance(given[end], int) for end in ("min", "max")) else "uniform"


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scalar(value: Any) -> Scalar:
    return value if value is None or isinstance(value, str | int | float) else str(value)


# ---- the study ------------------------------------------------------------------------------------------------------


class Search:
    """The trials of a sweep in their storage, shared by any number of processes.

    Args:
        sweep: what is tried.
        storage: file of the trials.
        limit: how many there are to be in all.
    """

    def __init__(self, sweep: Sweep, storage: Path, limit: int) -> None:
        self.optuna = need("optuna", "sweep")
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

        self.sweep, self.limit = sweep, limit
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self._mutex = JournalFileSymlinkLock(f"{storage}.claim")
        try:
            if storage.exists() and not is_journal(storage):
                raise ConfigError(
                    f"--storage {storage} is another file than a journal of trials, and is left as it is; give a name "
                    "that no file has yet."
                )
            storage.parent.mkdir(parents=True, exist_ok=True)
            self.study: Study = self.optuna.create_study(
                study_name=sweep.name,
                storage=JournalStorage(JournalFileBackend(str(storage))),
                direction="maximize" if sweep.maximize else "minimize",
                pruner=pruner(sweep),
                load_if_exists=True,
            )
        except OSError as error:
            raise ConfigError(
                f"--storage {storage}: {error.strerror}; give a file, in a folder that can be written to."
            ) from error
        with self._alone():
            self._take_folder(storage)

    def _take_folder(self, storage: Path) -> None:
        """Make the sweep's folder this study's. Raises `ConfigError` where the trials in it, or the study, are others.

        For a trial goes on from what is in its folder, and its score is read there.
        """
        folder, known = self.sweep.folder, self.study.user_attrs
        if known.get(SPACE, self.sweep.space) != self.sweep.space:
            raise ConfigError(
                f"{storage} has the trials of another sweep of this name: its parameters, metric or command were "
                f"others. Give {self.sweep.name}.yaml another name."
            )
        identity, owner = known.get(IDENTITY, uuid.uuid4().hex), folder / OWNER
        self.study.set_user_attr(IDENTITY, identity)
        folder.mkdir(parents=True, exist_ok=True)
        if self.trials or not any(folder.glob("trial_*")):
            with suppress(FileExistsError), owner.open("x") as file:
                file.write(f"{identity}\n{storage}\n")
        theirs, _, former = (owner.read_text() if owner.exists() else "").strip().partition("\n")
        if theirs != identity:
            of = f" (of {former})" if former else ""
            raise ConfigError(
                f"{folder} has trials{of} that are not those of {storage}. Give their --storage, move {folder} away, "
                f"or give {self.sweep.name}.yaml another name."
            )
        self.study.set_user_attr(SPACE, self.sweep.space)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of this storage is here."""
        self._mutex.acquire()
        try:
            yield
        finally:
            self._mutex.release()

    @property
    def trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def states(self, *names: str) -> "list[FrozenTrial]":
        return [trial for trial in self.trials if trial.state.name in names]

    @contextmanager
    def claim(self) -> "Iterator[tuple[Trial, dict[str, Scalar], int] | None]":
        """A trial to run, its values and the file of its lock: one that was left in the middle, or a new one; or None.

        No other process gets it meanwhile.
        """
        with ExitStack() as held:
            with self._alone():
                trial, file = self._left_by_a_process_of_this_machine(held)
                trial, file = (trial, file) if trial else self._new(held)
                values = {name: one.suggest(trial, name) for name, one in self._parameters.items()} if trial else {}
            yield (trial, values, file) if trial else None

    @property
    def _parameters(self) -> dict[str, Parameter]:
        if self.sweep.method != "grid":
            return dict(self.sweep.parameters)
        return {name: Parameter(one.listed(name)) for name, one in self.sweep.parameters.items()}

    def _left_by_a_process_of_this_machine(self, held: ExitStack) -> "tuple[Trial | None, int]":
        for trial in self.states("RUNNING"):
            if trial.user_attrs.get(MACHINE) == platform.node():
                file = held.enter_context(lock(self.folder(trial.number)))
                if file is not None:
                    return self.optuna.trial.Trial(self.study, trial._trial_id), file.fileno()
        return None, -1

    def _new(self, held: ExitStack) -> "tuple[Trial | None, int]":
        number = len(self.trials)
        if number >= self.limit:
            return None, -1
        self.study.sampler = sampler(self.sweep, number)
        trial = self.study.ask()
        trial.set_user_attr(MACHINE, platform.node())
        file = held.enter_context(lock(self.folder(trial.number)))
        assert file is not None, "the number is new"
        return trial, file.fileno()

    def folder(self, number: int) -> Path:
        return self.sweep.folder / f"trial_{number}"


def is_journal(storage: Path) -> bool:
    """Whether a file is one of Optuna's, or empty. Others it would append to."""
    with storage.open("rb") as file:
        first = file.readline()
    try:
        return not first or "op_code" in dict(json.loads(first))
    except (TypeError, ValueError):
        return False


def sampler(sweep: Sweep, number: int) -> "BaseSampler":
    """Of one trial: what it draws depends on its number, so that processes beside each other draw different values."""
    from optuna import samplers

    class Grid(samplers.GridSampler):
        def after_trial(self, *_: Any) -> None:
            """Optuna's stops `Study.optimize` at the end of the grid, and fails where that is not what runs."""

    if sweep.method == "grid":  # the order of the grid is the same for all; Optuna gives trial n the n-th of it
        return Grid({name: [*one.listed(name)] for name, one in sweep.swept.items()}, seed=0)
    return samplers.RandomSampler(seed=number) if sweep.method == "random" else samplers.TPESampler(seed=number)


def pruner(sweep: Sweep) -> Any:
    """W&B's hyperband stops a run at the iterations m, m eta, m eta^2, ... unless it is among the best 1 / eta there.

    That is asynchronous successive halving. Iterations are validations, from 1 on.
    """
    from optuna import pruners

    early = sweep.early_terminate
    if not early:
        return pruners.NopPruner()
    eta = early.get("eta", 3)
    least = early.get("min_iter") or max(1, int(early["max_iter"] / eta ** early["s"]))
    return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=eta)


# ---- a trial --------------------------------------------------------------------------------------------------------


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


# ---- the report -----------------------------------------------------------------------------------------------------


def table(search: Search) -> list[dict[str, Any]]:
    """A row for each trial. The value of one that was pruned is its last."""
    rows = []
    for trial in search.trials:
        last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
        value = trial.value if trial.value is not None else last
        rows.append(
            {
                "trial": trial.number, "state": trial.state.name.lower(), search.sweep.metric: value,
                "validations": len(trial.intermediate_values),
                **{name: trial.params.get(name) for name in search.sweep.swept},
                "run": str(search.folder(trial.number)),
            }
        )  # fmt: skip
    return rows


def cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pictures(study: "Study", metric: str, folder: Path) -> list[Path]:
    """Optuna's plots: the curves of all trials, and of those that are done, if there are two, what led to what."""
    from matplotlib import pyplot
    from matplotlib.figure import Figure
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as plot

    pyplot.switch_backend("agg")
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    varied = any(len({trial.params[name] for trial in done}) > 1 for name in (done[0].params if done else ()))
    paths, axes = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Attempting to set identical low and high")  # of an axis of equal values
        if any(trial.intermediate_values for trial in trials):
            axes["curves"] = plot.plot_intermediate_values(study)
            axes["curves"].set(xlabel="validation", ylabel=metric, title="Curves of the trials")
        if len(done) > 1:
            axes["history"] = plot.plot_optimization_history(study)
            axes["parallel_coordinates"] = plot.plot_parallel_coordinate(study)
        if varied and len({trial.value for trial in done}) > 1:
            axes["importances"] = plot.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    for name, drawn in axes.items():
        figure = cast(Figure, drawn.figure)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150, bbox_inches="tight")
        pyplot.close(figure)
    return paths


def report(search: Search) -> str:
    """The table, the pictures, and how to test the best trial."""
    rows, folder = table(search), search.sweep.folder
    if not rows:
        return NO_TRIALS
    write_csv(folder / "trials.csv", rows)
    files = [folder / "trials.csv", *pictures(search.study, search.sweep.metric, folder)]
    lines = [markdown(rows), "", f"Files: {', '.join(map(str, files))}"]
    if search.states("COMPLETE"):
        best = search.study.best_trial
        run = run_folder(search.folder(best.number))
        lines += [
            f"Best by {search.sweep.metric}: trial {best.number}, {best.value:.4f}. Test it, once:",
            f"  {PROGRAM} test --config {run / 'config.yaml'} --ckpt_path {run}",
        ]
    return "\n".join(lines)


def left(search: Search, stopped: bool) -> list[str]:
    """Lines that say which trials have failed, and which are not done."""
    failed, running = ([str(trial.number) for trial in search.states(state)] for state in ("FAIL", "RUNNING"))
    lines = []
    if failed:
        which = failed[0] if len(failed) == 1 else f"{{{','.join(failed)}}}"  # the shell's, as of `cat`
        log = search.sweep.folder / f"trial_{which}" / "log.txt"
        lines.append(f"Failed: {len(failed)} of {len(search.trials)} trials, which are not run again; see {log}")
    if running:
        goes_on = "; the same command goes on" if stopped else ""
        lines.append(f"Not finished: trial{'s' if running[1:] else ''} {', '.join(running)}{goes_on}.")
    return lines


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
