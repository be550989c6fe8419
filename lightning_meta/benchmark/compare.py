"""Runs side by side, from the files they left: no server is needed.

python -m lightning_meta compare RUN [RUN ...] [--out FOLDER]

A RUN is the folder of a run, `runs/<experiment>/version_<n>`, with its `result.json` and `test_episodes.csv`. Runs that
differ in their training seed alone are pooled. The first method is the one that the others are compared with.
"""

import argparse
import csv
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.callbacks.tables import write_csv
from lightning_meta.core.statistics import Z95, mean_and_ci95
from lightning_meta.errors import DataError
from lightning_meta.results.table import says_where, settings
from lightning_meta.viz.comparison import comparison

# Runs are tested on the same frozen episodes if they agree in these.
EPISODES = (
    "data", "metric", "n_way", "k_shot", "n_query", "unroll_steps", "batch_size", "episode_seed", "episodes",
)  # fmt: skip


class Run(NamedTuple):
    """What a run left: `result.json`, and the metric of each test episode `(E,)`, float64, in the order of episodes."""

    result: dict[str, Any]
    scores: Tensor


class Method(NamedTuple):
    """Runs that differ in their training seed alone."""

    name: str
    runs: list[Run]

    @property
    def scores(self) -> Tensor:
        """Mean over the seeds for each test episode, `(E,)`."""
        return torch.stack([run.scores for run in self.runs]).mean(0)


class Row(NamedTuple):
    """One method. Halves of 95 % intervals end with `_ci95`; `seeds_ci95` is that of the mean over training seeds."""

    method: str
    seeds: int
    mean: float
    ci95: float
    seeds_ci95: float | None
    difference: float | None
    difference_ci95: float | None
    why_no_difference: str


def load(folder: Path) -> Run:
    """Read the files of a run; `DataError` where they are missing or are not those of a test."""
    missing = [name for name in ("result.json", "test_episodes.csv") if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)}; give the folder of a run that was tested.")
    result = json.loads((folder / "result.json").read_text())
    with (folder / "test_episodes.csv").open(newline="") as file:
        scores = [float(row[result["metric"]]) for row in csv.DictReader(file)]
    if len(scores) != result["episodes"]:
        raise DataError(
            f"{folder}: test_episodes.csv has {len(scores)} episodes, result.json {result['episodes']}; they are not "
            "of the same test. Test the checkpoint again."
        )
    return Run(result, torch.tensor(scores, dtype=torch.float64))


def pool(runs: Sequence[Run]) -> list[Method]:
    """Put runs together that are alike but for the training seed, in the order in which they are given."""
    methods: dict[tuple[str, tuple[Any, ...]], list[Run]] = {}
    for run in runs:
        methods.setdefault((_name(run.result), _episodes(run.result)), []).append(run)
    for (name, _), alike in methods.items():
        seeds = [run.result["seed"] for run in alike]
        if len(set(seeds)) < len(seeds):
            raise DataError(f"{name} is there {len(seeds)} times, with training seeds {seeds}; give each run once.")
    return [Method(name, alike) for (name, _), alike in methods.items()]


def rows(methods: Sequence[Method]) -> list[Row]:
    """Mean of each method and its paired difference from the first."""
    first, result = methods[0], []
    for method in methods:
        mean, ci95 = _mean_and_ci95(method.scores)
        seeds = torch.stack([run.scores.mean() for run in method.runs])
        seeds_ci95 = Z95 * (seeds.std() / len(seeds) ** 0.5).item() if len(seeds) > 1 else None
        ours, theirs = (_episodes(m.runs[0].result) for m in (method, first))
        unlike = [f"{key} {a} against {b}" for key, a, b in zip(EPISODES, ours, theirs, strict=True) if a != b]
        difference, difference_ci95 = (
            (None, None) if method is first or unlike else _mean_and_ci95(method.scores - first.scores)
        )
        result.append(
            Row(method.name, len(seeds), mean, ci95, seeds_ci95, difference, difference_ci95, ", ".join(unlike))
        )
    return result


def markdown(table: Sequence[Row], metric: str) -> str:
    """The table. Accuracies are in per cent."""
    scale, unit, digits = (100, " (%)", 2) if metric == "acc" else (1, "", 4)

    def number(mean: float | None, ci95: float | None) -> str:
        return "-" if mean is None else f"{scale * mean:.{digits}f} ± {scale * (ci95 or 0):.{digits}f}"

    head = f"| method | seeds | {metric}{unit} | ± over seeds | paired difference from the first |"
    lines = [
        f"| `{row.method}` | {row.seeds} | {number(row.mean, row.ci95)} "
        f"| {'-' if row.seeds_ci95 is None else f'{scale * row.seeds_ci95:.{digits}f}'} "
        f"| {row.why_no_difference or number(row.difference, row.difference_ci95)} |"
        for row in table
    ]
    return "\n".join([head, "|---|---|---|---|---|", *lines])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta compare", description="Compare tested runs over the same frozen episodes."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run: runs/<experiment>/version_<n>"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="where the files go (%(default)s)")
    given = parser.parse_args(arguments)
    methods = pool([load(folder) for folder in given.runs])
    metrics = sorted({run.result["metric"] for method in methods for run in method.runs})
    if len(metrics) > 1:
        raise DataError(f"the runs measure {' and '.join(metrics)}; compare runs that have one metric.")
    table = rows(methods)
    text = markdown(table, metrics[0])
    episodes = methods[0].runs[0].result["episodes"]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "comparison.md").write_text(text + "\n")
    write_csv(given.out / "comparison.csv", [row._asdict() for row in table])
    comparison(table, metrics[0]).savefig(given.out / "comparison.png")
    print(f"{text}\n\n± are 95 % intervals over {episodes} test episodes. Files: {given.out}/comparison.md, .csv, .png")


def _name(result: dict[str, Any]) -> str:
    """The experiment and what its command changed, the training seed apart."""
    pairs = settings(result["command"])
    changed = [pair for pair in pairs if not says_where(pair[0]) and pair[0] != "--seed_everything"]
    return shlex.join([result["experiment"], *(word for pair in changed for word in pair)])


def _episodes(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result.get(key) for key in EPISODES)


def _mean_and_ci95(values: Tensor) -> tuple[float, float]:
    count = torch.tensor(len(values), dtype=torch.float64)
    mean, ci95 = mean_and_ci95(values.sum(), values.square().sum(), count)
    return mean.item(), ci95.item()
