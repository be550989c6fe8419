"""What a sweep has found: a table, Optuna's pictures, and how to test the best trial."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning_meta.cli.names import run_folder
from lightning_meta.cli.usage import PROGRAM
from lightning_meta.reports.tables import write_csv
from lightning_meta.sweep.study import Search

if TYPE_CHECKING:
    from optuna import Study

NO_TRIALS = "No trials yet."


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
