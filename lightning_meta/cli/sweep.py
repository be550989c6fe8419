"""Sweeps without a server: the files that `wandb agent` takes, run through Optuna.

python -m lightning_meta sweep FILE [--trials N] [--storage FILE]

FILE is a sweep in W&B's format, `configs/sweep/<name>.yaml`, or its name. Method `grid` tries all combinations,
`random` draws them, and `bayes` is Optuna's tree-structured Parzen estimator. Trials are chosen by the validation
episodes, and stopped early by them where the file asks for it (`early_terminate`); no trial is tested. The command that
tests the best one is printed at the end.

Each trial is a training of its own, `runs/<sweep>/trial_<n>`. Its storage is one file, so that several of these
commands may share a sweep, on several machines too where they share the folder. Stopped or killed, and started again,
a sweep goes on, and so does the trial that it was at. Draws of trial n depend on n and on the trials before it, not
on the process that runs it.

Below `runs/<sweep>/`: `optuna.journal` (the storage), `trials.csv`, and Optuna's pictures `curves.png` (validation by
validation), `history.png`, `parallel_coordinates.png` and `importances.png`.

Exit status: 0 when all trials are done, 1 when one of this process failed, 75 when others still run some, and
128 + signal when a signal stopped it.
"""

import argparse
import csv
import math
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml

from lightning_meta.cli import children
from lightning_meta.cli.children import Process
from lightning_meta.cli.names import RUNS, found, run_folder, suggestion
from lightning_meta.cli.usage import PROGRAM
from lightning_meta.errors import ConfigError, UsageError
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
MACHINE = "machine"  # an attribute of trials: who runs it
SPACE = "sweep"  # an attribute of studies: what is swept

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


# ---- the file -------------------------------------------------------------------------------------------------------


def read(path: Path) -> Sweep:
    """Read a sweep file. Raises `ConfigError` where it asks for what is not done here."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no sweep: it has no method, metric and parameters.")
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{path}: {key} is not known.{suggestion(str(key), KEYS)}")
    method, metric = content.get("method"), content.get("metric") or {}
    if method not in METHODS:
        raise ConfigError(f"{path}: method={method} must be one of {', '.join(METHODS)}.")
    name, goal = str(metric.get("name")), metric.get("goal", "minimize")
    if not name.startswith("val/"):
        raise ConfigError(
            f"{path}: metric.name={name}: trials are chosen by the validation episodes, so it must be one of val/..., "
            "such as val/acc; what was chosen by test episodes could not be reported on them."
        )
    if goal not in ("maximize", "minimize"):
        raise ConfigError(f"{path}: metric.goal={goal} must be maximize or minimize.")
    if not content.get("parameters"):
        raise ConfigError(f"{path}: there are no parameters to sweep.")
    parameters = {key: parameter(key, given) for key, given in content["parameters"].items()}
    early = content.get("early_terminate") or {}
    if early and (early.get("type") != "hyperband" or not ("min_iter" in early or {"max_iter", "s"} <= early.keys())):
        raise ConfigError(
            f"{path}: early_terminate={early} must be of the type hyperband, with min_iter, or with max_iter and s."
        )
    cap = content.get("run_cap")
    if method == "grid":
        count = math.prod(len(one.listed(key)) for key, one in parameters.items())
        cap = min(cap or count, count)
    command = content.get("command") or DEFAULT_COMMAND
    program = str(content.get("program", "lightning_meta"))
    sweep = Sweep(path.stem, method, name, goal == "maximize", parameters, command, program, early, cap)
    sweep.words({})
    return sweep


def parameter(name: str, given: Any) -> Parameter:
    """One entry of `parameters`, by W&B's rules for what is left out. Raises `ConfigError`."""
    given = given if isinstance(given, dict) else {"value": given}
    kind = given.get("distribution") or _kind(name, given)
    low, high, step = (given.get(key) for key in ("min", "max", "q"))
    if kind == "constant":
        return Parameter((_scalar(given.get("value")),))
    if kind == "categorical":
        values = given.get("values")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{name}: values={values} must be a list.")
        return Parameter(tuple(_scalar(value) for value in values))
    ranges = {
        "int_uniform": Parameter(whole=True),
        "uniform": Parameter(),
        "q_uniform": Parameter(step=step or 1),
        "log_uniform_values": Parameter(log=True),
        "log_uniform": Parameter(log=True),
    }
    if kind not in ranges:
        known = ("constant", "categorical", *ranges)
        raise ConfigError(f"{name}: distribution={kind} is not done here; there are: {', '.join(known)}.")
    if not all(isinstance(end, int | float) for end in (low, high)) or low >= high:
        raise ConfigError(f"{name}: min={low} and max={high} must be numbers, of which max is larger.")
    if kind == "log_uniform":  # W&B's ends are exponents of e
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
        raise ConfigError(f"{name}: give value, values, or min and max; it has {', '.join(given) or 'nothing'}.")
    return "int_uniform" if all(isinstance(given[end], int) for end in ("min", "max")) else "uniform"


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
        storage.parent.mkdir(parents=True, exist_ok=True)
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self._mutex = JournalFileSymlinkLock(f"{storage}.claim")
        self.study: Study = self.optuna.create_study(
            study_name=sweep.name,
            storage=JournalStorage(JournalFileBackend(str(storage))),
            direction="maximize" if sweep.maximize else "minimize",
            pruner=pruner(sweep),
            load_if_exists=True,
        )
        former = self.study.user_attrs.get(SPACE)
        if former not in (None, sweep.space):
            raise ConfigError(
                f"{storage} has the trials of another sweep of this name: its parameters, metric or command were "
                "others. Give another --storage, or the file another name."
            )
        self.study.set_user_attr(SPACE, sweep.space)

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
            self._mutex.acquire()
            try:
                trial, file = self._left_by_a_process_of_this_machine(held)
                trial, file = (trial, file) if trial else self._new(held)
                values = {name: one.suggest(trial, name) for name, one in self._parameters.items()} if trial else {}
            finally:
                self._mutex.release()
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

    def read(self) -> None:
        """Report the validations that have been made since."""
        files = sorted(self.folder.glob("version_*/metrics.csv"), key=lambda file: file.stat().st_mtime_ns)
        found = column(files[-1], self.metric) if files else []
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


def play(search: Search, trial: "Trial", values: Mapping[str, Scalar], file: int) -> tuple[bool, int]:
    """Run a trial and tell the study how it ended; whether it failed, and the signal that stopped it, 0 for none."""
    sweep, folder, study = search.sweep, search.folder(trial.number), search.study
    name, states = f"trial {trial.number}", search.optuna.trial.TrialState
    going_on = [*folder.glob("version_*/checkpoints/last*.ckpt")]
    command = [
        *sweep.words(values), "--name", f"{sweep.name}/{folder.name}", "--test_after_fit", "false",
        *(["--ckpt_path", "last"] if going_on else []),
    ]  # fmt: skip
    said = ", ".join(f"{key} {cell(values[key])}" for key in sweep.swept)
    say(name, f"{'goes on' if going_on else 'starts'}: {said}; {folder / 'log.txt'}")
    curve = Curve(trial, folder, sweep.metric)
    with (folder / "log.txt").open("ab") as log:
        status, received = children.run(command, keep_open=[file], watch=curve.watch, log=log)
    curve.read()
    known = [value for value in curve.values if not math.isnan(value)]
    if curve.pruned:
        study.tell(trial, state=states.PRUNED)
        say(name, f"pruned after {len(curve.values)} validations, {sweep.metric} {curve.values[-1]:.4f}")
    elif received or status in children.STOPPED:
        return False, received or status % 128
    elif status or not known:
        study.tell(trial, state=states.FAIL)
        ended = f"it ended with status {status}: {last_words(folder / 'log.txt')}"
        say(name, f"FAILED: {ended if status else f'{folder} has no {sweep.metric} in metrics.csv'}")
        return True, 0
    else:
        best = (max if sweep.maximize else min)(known)
        study.tell(trial, best)
        say(name, f"done: {sweep.metric} {best:.4f}, the best of {len(curve.values)} validations")
    return False, 0


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
        return "No trials yet."
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
    sweep = read(found("sweep", given.file))
    limit = sweep.cap if given.trials is None else min(given.trials, sweep.cap or given.trials)
    if limit is None:
        raise UsageError(f"a sweep by {sweep.method} has no end: give --trials N, or run_cap in {given.file}.")
    search = Search(sweep, given.storage or sweep.folder / "optuna.journal", limit)
    failed, stopped = False, 0
    while not stopped:
        with search.claim() as claimed:
            if claimed is None:
                break
            fails, stopped = play(search, *claimed)
        failed = failed or fails
    running = search.states("RUNNING")
    print(f"\n{report(search)}")
    if running:
        print(f"Not finished: trials {', '.join(str(trial.number) for trial in running)}.")
    sys.exit(128 + stopped if stopped else 1 if failed else WORK_LEFT if running else 0)
