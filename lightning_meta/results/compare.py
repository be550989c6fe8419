"""Runs side by side, from the files they left: no server is needed.

python -m lightning_meta compare RUN [RUN ...] [--out FOLDER]

A RUN is the folder of a run, `runs/<experiment>/version_<n>`, with its `result.json` and `test_episodes.csv`, or the
name of an experiment for the newest of its runs, or all runs of the group where `fit --seeds` has trained one. Runs
that differ in their training seed alone are pooled. The first method is the one that the others are compared with.

Runs are paired episode by episode where they were tested on the same ones, of which `episodes_digest` in `result.json`
is the witness. A run that is older than digests is neither paired nor pooled.
"""

import argparse
import csv
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.cli.names import GROUP, run_folder, runs_like
from lightning_meta.core.statistics import mean_and_ci95_over, mean_and_t95
from lightning_meta.errors import DataError
from lightning_meta.metrics import metric_of
from lightning_meta.reports.style import BLUE, GREY, SMALL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tables import write_csv
from lightning_meta.results.table import says_where, settings
from lightning_meta.run_folders import folders_named

# In which runs are to agree, said where they do not.
SETTINGS = (
    "data", "metric", "n_way", "k_shot", "n_query", "unroll_steps", "batch_size", "episode_seed", "episodes",
)  # fmt: skip


class Run(NamedTuple):
    """What a run left: its folder, `result.json`, and the metric of each test episode `(E,)`, float64, by its id."""

    folder: Path
    result: dict[str, Any]
    scores: Tensor

    @property
    def digest(self) -> str | None:
        """Of the episodes that it was tested on."""
        return self.result.get("episodes_digest")


class Method(NamedTuple):
    """Runs that differ in their training seed alone."""

    name: str
    runs: list[Run]

    @property
    def scores(self) -> Tensor:
        """Mean over the seeds for each test episode, `(E,)`."""
        return torch.stack([run.scores for run in self.runs]).mean(0)


class Row(NamedTuple):
    """One method. Halves of 95 % intervals end with `_ci95`; `seeds_ci95` is that of the mean over training seeds, by
    Student's t."""

    method: str
    seeds: int
    episodes: int
    mean: float
    ci95: float
    seeds_ci95: float | None
    difference: float | None
    difference_ci95: float | None
    why_no_difference: str


def load(folder: Path) -> Run:
    """Read the files of a run; `DataError` where they are missing or are not those of a test."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; give the folder of a run: runs/<experiment>/version_<n>.{runs_like(folder)}"
        )
    missing = [name for name in ("result.json", "test_episodes.csv") if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)}; give the folder of a run that was tested.")
    result = json.loads((folder / "result.json").read_text())
    with (folder / "test_episodes.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    scores = {int(float(line["episode"])): float(line[result["metric"]]) for line in lines}
    if not len(scores) == len(lines) == result["episodes"]:
        raise DataError(
            f"{folder}: test_episodes.csv has {len(lines)} rows of {len(scores)} episodes, result.json "
            f"{result['episodes']}; they are not of the same test. Test the checkpoint again."
        )
    return Run(folder, result, torch.tensor([scores[i] for i in sorted(scores)], dtype=torch.float64))


def folders(place: Path) -> list[Path]:
    """Of the runs that a place or a name means: a run, the newest of an experiment, or those of a group of seeds."""
    group = next((file for folder in folders_named(place) if (file := folder / GROUP).is_file()), None)
    if group is None:
        seeds = sorted({seed for folder in folders_named(place) for seed in folder.glob("seed_*")})
        if seeds and not (tested := [seed for seed in seeds if any(seed.glob("version_*/result.json"))]):
            raise DataError(f"{place}: none of its {len(seeds)} seeds has been tested; wait for the first one.")
        return [run_folder(seed, "result.json") for seed in tested] if seeds else [run_folder(place, "result.json")]
    listed = [Path(seed["run"]) for seed in json.loads(group.read_text())["seeds"]]
    return [group.parent.joinpath(*run.parts[-2:]) for run in listed]  # seed_<n>/version_<k>, wherever the group is


def pool(runs: Sequence[Run]) -> list[Method]:
    """Put runs together that are alike but for the training seed, in the order in which they are given."""
    methods: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        key = _name(run.result), *_settings(run.result), run.digest or run.folder
        methods.setdefault(key, []).append(run)
    for (name, *_), alike in methods.items():
        seeds = [run.result["seed"] for run in alike]
        if len(set(seeds)) < len(seeds):
            raise DataError(f"{name} is there {len(seeds)} times, with training seeds {seeds}; give each run once.")
    return [Method(name, alike) for (name, *_), alike in methods.items()]


def rows(methods: Sequence[Method]) -> list[Row]:
    """Mean of each method and its paired difference from the first."""
    first, result = methods[0], []
    for method in methods:
        mean, ci95 = _mean_and_ci95(method.scores)
        seeds = torch.stack([run.scores.mean() for run in method.runs])
        seeds_ci95 = mean_and_t95(seeds)[1] if len(seeds) > 1 else None
        why_not = "" if method is first else _why_not_paired(method.runs[0], first.runs[0])
        paired = method is not first and not why_not
        difference, difference_ci95 = _mean_and_ci95(method.scores - first.scores) if paired else (None, None)
        episodes = len(method.scores)
        result.append(
            Row(method.name, len(seeds), episodes, mean, ci95, seeds_ci95, difference, difference_ci95, why_not)
        )
    return result


def _why_not_paired(run: Run, first: Run) -> str:
    """Empty where both were tested on the same episodes."""
    ours, theirs = _settings(run.result), _settings(first.result)
    unlike = [f"{key} {a} against {b}" for key, a, b in zip(SETTINGS, ours, theirs, strict=True) if a != b]
    if unlike:
        return ", ".join(unlike)
    old = [str(one.folder) for one in (run, first) if one.digest is None]
    if old:
        return f"not known to be the same episodes: no digest of them in {' and '.join(old)}; test again"
    return (
        "" if run.digest == first.digest else "other episodes of the same shape: other data, or other settings of them"
    )


def markdown(table: Sequence[Row], metric: str) -> str:
    """The table. Accuracies are in per cent."""
    written = metric_of(metric)

    def number(mean: float | None, ci95: float | None = None) -> str:
        return "-" if mean is None else written.number(mean, ci95)

    head = f"| method | seeds | episodes | {written.label(metric)} | ± over seeds | paired difference from the first |"
    lines = [
        f"| `{row.method}` | {row.seeds} | {row.episodes} | {number(row.mean, row.ci95)} "
        f"| {number(row.seeds_ci95)} "
        f"| {row.why_no_difference or number(row.difference, row.difference_ci95)} |"
        for row in table
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def comparison(table: Sequence[Row], metric: str) -> Figure:
    """Means with 95 % intervals over episodes at the left; at the right the differences from the first method.

    An interval of a difference that leaves out zero is drawn in vermillion. A method without a difference (the first,
    or one that was tested on other episodes) has no mark there; where no method has one, there is no right side.
    """
    names = [row.method.replace(" --", "\n--") for row in table]  # an option on each line
    lines = sum(name.count("\n") + 2 for name in names)
    paired = any(row.difference is not None for row in table)
    figure = new_figure(11 if paired else 7, 1.4 + 0.2 * lines, "Methods on frozen episodes, 95 % intervals")
    means, *differences = figure.subplots(1, 2 if paired else 1, sharey=True, squeeze=False)[0]
    written = metric_of(metric)
    scale = written.scale
    for place, row in enumerate(table):
        means.errorbar(scale * row.mean, place, xerr=scale * row.ci95, fmt="o", color=BLUE, capsize=3, markersize=5)
        for axes in differences:
            if row.difference is not None and row.difference_ci95 is not None:
                colour = VERMILLION if abs(row.difference) > row.difference_ci95 else GREY
                spread = scale * row.difference_ci95
                axes.errorbar(scale * row.difference, place, xerr=spread, fmt="o", color=colour, capsize=3)
    tidy(means, written.label(metric))
    for axes in differences:
        axes.axvline(0, color=GREY, linewidth=1)
        tidy(axes, written.label("difference from the first"))
    means.set_yticks(range(len(table)), names, fontsize=SMALL)
    means.set_ylim(len(table) - 0.5, -0.5)
    return figure


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta compare", description="Compare tested runs over the same frozen episodes."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="folder of a run, runs/<experiment>/version_<n>, or the experiment's name for its newest one or its seeds",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="where the files go (%(default)s)")
    given = parser.parse_args(arguments)
    methods = pool([load(folder) for place in given.runs for folder in folders(place)])
    metrics = sorted({run.result["metric"] for method in methods for run in method.runs})
    if len(metrics) > 1:
        raise DataError(f"the runs measure {' and '.join(metrics)}; compare runs that have one metric.")
    table = rows(methods)
    text = markdown(table, metrics[0])
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "comparison.md").write_text(text + "\n")
    write_csv(given.out / "comparison.csv", [row._asdict() for row in table])
    comparison(table, metrics[0]).savefig(given.out / "comparison.png")
    print(f"{text}\n\n± are 95 % intervals, of scores over test episodes. Files: {given.out}/comparison.md, .csv, .png")


def _name(result: dict[str, Any]) -> str:
    """The experiment and what its command changed, the training seed apart."""
    pairs = settings(result["command"])
    changed = [pair for pair in pairs if not says_where(pair[0]) and pair[0] != "--seed_everything"]
    return shlex.join([result["experiment"], *(word for pair in changed for word in pair)])


def _settings(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result.get(key) for key in SETTINGS)


def _mean_and_ci95(values: Tensor) -> tuple[float, float]:
    mean, ci95 = mean_and_ci95_over(values)
    return mean.item(), ci95.item()
