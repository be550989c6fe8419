"""A sweep in W&B's format, as a file asks for it."""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from lightning_meta.checkpoints import RUNS
from lightning_meta.cli.names import suggestion
from lightning_meta.cli.trainer import resolve
from lightning_meta.cli.usage import PROGRAM
from lightning_meta.errors import ConfigError, reason

if TYPE_CHECKING:
    from optuna import Trial

KEYS = {
    "program", "method", "metric", "parameters", "command", "early_terminate", "run_cap", "name", "description",
    "project", "entity",
}  # fmt: skip
METHODS = ("grid", "random", "bayes")
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's

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
