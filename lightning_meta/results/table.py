"""Rows of Markdown made from result files, the `result.json` that runs leave, and from the headers of experiments."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import by_name
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.statistics import mean_and_t95
from lightning_meta.errors import DataError
from lightning_meta.metrics import metric_of

HEADER = (
    "| experiment | options | score | paper | tested on | normalisation | inner steps | outer steps | trained in "
    "| hardware |\n|---|---|---|---|---|---|---|---|---|---|"
)
SHORT_HEADER = "| result | ours | paper | normalisation | outer steps of the recipe |\n|---|---|---|---|---|"
# Options that say where, not what; so do those below them, such as `--trainer.logger.save_dir`.
PLACES = (
    "--config", "--ckpt_path", "--name", "--trainer.logger", "--trainer.accelerator", "--trainer.enable_progress_bar",
    "--data.root",
)  # fmt: skip
# Values in which results that are alike but for the training seed differ, beside their scores.
OF_ONE_TRAINING = {
    "seed", "command", "logs", "outer_steps", "fit_seconds", "test_seconds", "episodes_per_s", "git_commit", "hardware",
    "trained_with", "torch",
}  # fmt: skip


def row(result: dict[str, Any], experiment: Path) -> str:
    """One line of the full table. Accuracy is in per cent; every score has its 95 % confidence half-width.

    Args:
        result: what a result file says.
        experiment: the file of the experiment, whose header states the paper's figure and which trains so many steps.
    """
    if "n_way" in result:
        shape = EpisodeShape(result["n_way"], result["k_shot"], result["n_query"])
        tested_on = f"{result['episodes']} episodes, {shape}"
    elif "judged_on" in result:
        examples, steps = f"{result['judged_on']} examples of {result['data']}", result["inner_steps"]
        many = f"{result['episodes']} trainings of {steps} steps" if steps else f"{result['episodes']} parts"
        tested_on = f"{examples}, {many}"
    elif "world" in result:
        rounds = f"{result['rounds']} of adaptation, " if result["rounds"] else ""
        sizes = f"{result['trajectories']} x {result['horizon']} steps"
        tested_on = f"{result['episodes']} tasks, {result['world']}, {rounds}{sizes}"
    else:
        tested_on = f"{result['episodes']} optimizees, {result['data']}, {result['unroll_steps']} steps"
    cells = [
        f"`{result['experiment']}`",
        f"`{changed}`" if (changed := options(result["command"])) else "",
        score(result),
        paper_figure(experiment, result),
        tested_on,
        result["normalisation"],
        _or_dash(result["eval_inner_steps"]),
        training(result, experiment),
        "-" if result["fit_seconds"] is None else f"{result['fit_seconds'] / 60:.0f} min",
        machine(result),
    ]
    return _line(cells)


def machine(result: Mapping[str, Any]) -> str:
    """What was trained with; where nothing was trained, or a result does not say, what was tested with."""
    return result.get("trained_with") or result["hardware"]


def short_row(name: str, result: dict[str, Any], experiment: Path) -> str:
    """One line of a short table, of the result file `name`."""
    count = result.get("n_query")
    queries = f", {count} {'query' if count == 1 else 'queries'}" if count else ""
    return _line(
        [
            f"`{name}`",
            score(result),
            paper_figure(experiment, result).split(" (")[0],
            f"{result['normalisation']}{queries}",
            training(result, experiment),
        ]
    )


def score(result: Mapping[str, Any]) -> str:
    """The metric with its interval and unit, or its name."""
    name = result["metric"]
    metric = metric_of(name)
    return metric.text(result[name], result[f"{name}_ci95"]) + ("" if metric.unit else f" {name}") + _seeds(result)


def over_seeds(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results by name, those that differ in their training seed alone as one: `a` of `a`, `a_seed1` and `a_seed2`.

    Its scores are means over the seeds, their intervals are Student's t: how would other trainings do?
    """
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for name, result in results.items():
        groups.setdefault(_without_seed(name), {})[name] = result
    together: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        first, *others = group.values()
        alike = others and all(_of_all_seeds(other) == _of_all_seeds(first) for other in others)
        together |= {name: _mean_of([first, *others])} if alike else group
    return together


def training(result: Mapping[str, Any], experiment: Path) -> str:
    """Outer steps trained, of those of the recipe."""
    return f"{steps:,} of {recipe_steps(experiment):,}" if (steps := trained_steps(result)) else "-"


def trained_steps(result: Mapping[str, Any]) -> int:
    """How long the training was; in results of version 0.1 at least as long as to the weights that were tested."""
    return result.get("trained_steps", result["outer_steps"]) or 0


def options(command: str) -> str:
    """What a command changes in its experiment: its options, without those of `PLACES`."""
    return shlex.join(word for pair in settings(command) if not says_where(pair[0]) for word in pair)


def says_where(option: str) -> bool:
    """Whether an option is one of `PLACES` or below one."""
    return f"{option}.".startswith(tuple(f"{place}." for place in PLACES))


def settings(command: str) -> list[tuple[str, str]]:
    """The options of a command with their values, whether written `--key value` or `--key=value`."""
    return pairs(shlex.split(command)[4:])  # after python -m lightning_meta fit


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """The options among words of a command line with their values."""
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return list(zip(parts[::2], parts[1::2], strict=True))


def paper_figure(config: Path, result: Mapping[str, Any]) -> str:
    """What the header of an experiment file says of the paper for the way and shot of a result; a dash for nothing.

    `# Paper:` is for the experiment's own test episodes, `# Paper 20w5s:` for others.
    """
    data = compose(config).get("data") or {}
    shape = data.get("init_args", {}) if isinstance(data, dict) else {}
    shape = shape | (shape.get("test") or {})
    other = any(key in shape and key in result and shape[key] != result[key] for key in ("n_way", "k_shot"))
    label = rf"Paper {result['n_way']}w{result['k_shot']}s" if other else "Paper"
    stated = re.search(rf"^# {label}: +(.+)$", config.read_text(), re.MULTILINE)
    return stated[1].replace("+-", "±") if stated else "-"


def recipe_steps(config: Path) -> int:
    """How many outer steps an experiment trains."""
    return compose(config)["trainer"]["max_steps"]


class Results:
    """The experiments and results of a folder, read once."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.rglob("results/*.json"), key=lambda path: path.stem)
        self.folder, self.experiments = folder, by_name(folder)
        self.of_files: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in files}
        self.over_seeds = over_seeds(self.of_files)

    def named(self, name: str) -> dict[str, Any]:
        """For all seeds of its training where it has several, and else of its file. Raises `DataError` for no file."""
        for results in (self.over_seeds, self.of_files):
            if name in results:
                return results[name]
        raise DataError(f"{self.folder} has no result file {name}.json.")


def table(results: Results) -> str:
    """All rows, ordered by result file, one for all seeds of a training; below them, what has no result."""
    experiments = results.experiments
    rows = [row(result, experiments[result["experiment"]]) for result in results.over_seeds.values()]
    measured = {result["experiment"] for result in results.of_files.values()}
    left_out = [f"`{name}`" for name in experiments if name not in measured]
    return "\n".join([HEADER, *rows, "", f"Not run: {', '.join(left_out) or 'none'}."])


def short_table(results: Results, names: Sequence[str]) -> str:
    """A row for each result file that is named, for all seeds of its training where it has several.

    Raises:
        DataError: there is no such file.
    """
    named = {name: results.named(name) for name in names}
    rows = [short_row(name, result, results.experiments[result["experiment"]]) for name, result in named.items()]
    return "\n".join([SHORT_HEADER, *rows])


def value(results: Results, name: str, key: str | None = None) -> str:
    """A value of the result file `name` with its interval, in the unit of its metric: its score, or what `key` names.

    Raises:
        DataError: there is no such file, or no such value with an interval in it.
    """
    result = results.named(name)
    found = result | (result.get("logs") or {})
    key = key or found["metric"]
    if not {key, f"{key}_ci95"} <= found.keys():
        known = sorted(k for k in found if f"{k}_ci95" in found)
        raise DataError(f"{name}.json has no value {key} with an interval; it has {', '.join(known)}.")
    return metric_of(key).text(found[key], found[f"{key}_ci95"]) + _seeds(found)


def _without_seed(name: str) -> str:
    """Name of a result file without the seed: `a_5_shot` of `a_seed1_5_shot`."""
    return re.sub(r"_seed\d+(?=_|$)", "", name)


def _of_all_seeds(result: Mapping[str, Any]) -> dict[str, Any]:
    """What results have in common that differ in their training seed alone."""
    common = {key: value for key, value in result.items() if key not in OF_ONE_TRAINING | _scores(result)}
    return common | {"options": options(_command(result))}


def _mean_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, seconds = results[0], [result["fit_seconds"] for result in results]
    return first | {
        **_means(results),
        "logs": _means([result.get("logs") or {} for result in results]),
        "command": _command(first),
        "seeds": len(results),
        "fit_seconds": None if None in seconds else sum(seconds) / len(seconds),
        "trained_with": "; ".join(dict.fromkeys(map(machine, results))),
    }


def _means(values: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the values that have an interval, and these intervals over the seeds."""
    made: dict[str, float] = {}
    for key in values[0]:
        if f"{key}_ci95" in values[0]:
            column = torch.tensor([value[key] for value in values], dtype=torch.float64)
            made[key], made[f"{key}_ci95"] = mean_and_t95(column)
    return made


def _scores(result: Mapping[str, Any]) -> set[str]:
    scores = {key for key in result if f"{key}_ci95" in result}
    return scores | {f"{key}_ci95" for key in scores}


def _command(result: Mapping[str, Any]) -> str:
    """Without its training seed."""
    chosen = [pair for pair in settings(result["command"]) if pair[0] != "--seed_everything"]
    return shlex.join([*shlex.split(result["command"])[:4], *(word for pair in chosen for word in pair)])


def _seeds(result: Mapping[str, Any]) -> str:
    return f" over {result['seeds']} seeds" if "seeds" in result else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
