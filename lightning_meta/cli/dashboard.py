"""A workspace view and a report in W&B, ready-made, where the runs of a project are compared.

python -m lightning_meta dashboard --entity E --project P [--metric acc] [--dry-run FILE]

Runs are grouped by algorithm and data, as their loggers have named the groups, so that a group's runs are seeds: lines
and bars are means over them with one standard error. There are the test score and its interval over episodes, learning
and adaptation curves laid over one another, the episodes one by one, calibration, and throughput. `--dry-run` needs no
account: it writes what would be sent.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_meta.cli.usage import PROGRAM
from lightning_meta.errors import ConfigError, reason
from lightning_meta.extras import need

TITLE = "lightning_meta: runs compared"
STEP = "trainer/global_step"
SEEDS = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
WIDE = 12  # columns of 24


def sections(metric: str) -> dict[str, tuple[str, list[Any]]]:
    """What is shown, by title: a sentence on it, and its panels. All that it reads is in the history of a run.

    Args:
        metric: of the runs: `acc`, `mse`, `log_likelihood`, `final_loss`.
    """
    from wandb_workspaces.reports import v2 as wr

    group = wr.Metric("Group")

    def lines(title: str, y: str, x: str = STEP) -> Any:
        return wr.LinePlot(title=title, x=wr.Metric(x), y=[wr.Metric(y)], groupby=group, **SEEDS)

    def bars(title: str, name: str) -> Any:
        return wr.BarPlot(title=title, metrics=[wr.SummaryMetric(name)], groupby=group, **SEEDS)

    def images(*names: str) -> Any:
        return wr.MediaBrowser(media_keys=[*names], num_columns=3)

    classifies = metric == "acc"
    shown: dict[str, tuple[str, list[Any]]] = {
        "Test": (
            "Scores on the frozen test episodes: means over seeds with one standard error, and the 95 % interval over "
            "episodes.",
            [
                bars(f"test {metric}", f"test/{metric}"),
                bars("half-width of the 95 % interval over episodes", f"test/{metric}_ci95"),
            ],
        ),
        "Learning": (
            "Learning curves over outer steps.",
            [
                lines(f"validation {metric}", f"val/{metric}"),
                lines("half-width of its 95 % interval over episodes", f"val/{metric}_ci95"),
                lines("meta-loss in training", "train/loss"),
                lines("validation loss", "val/loss"),
            ],
        ),
        "Adaptation": (
            "Query score after so many inner steps, on test episodes.",
            [
                lines(f"{metric} over inner steps", f"adaptation/{metric}", "adaptation/step"),
                lines("loss over inner steps", "adaptation/loss", "adaptation/step"),
                images("test/adaptation_curve"),
            ],
        ),
        "Episodes": ("The test episodes one by one.", [wr.WeavePanelSummaryTable(table_name="test/episodes")]),
        "Throughput": ("Training episodes per second.", [lines("episodes per second", "train/episodes_per_s")]),
        "Settings": ("In what the runs differ.", [wr.RunComparer(diff_only="split")]),
    }
    if classifies:
        shown["Episodes"][1].append(images("test/episode_0"))
        shown["Calibration"] = (
            "Are the classifiers as often right as they are sure?",
            [bars("expected calibration error", "test/ece"), images("test/calibration")],
        )
    return shown


def workspace(entity: str, project: str, metric: str) -> Any:
    """The view: a section for each part, grouped runs at the left."""
    from wandb_workspaces import workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=2))
            for name, (_, panels) in sections(metric).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group")],
            pinned_columns=[f"summary:test/{metric}", f"summary:test/{metric}_ci95"],
        ),
    )


def report(entity: str, project: str, metric: str) -> Any:
    """The same as a page, with a sentence to each part."""
    from wandb_workspaces.reports import v2 as wr

    blocks: list[Any] = [wr.P("Runs are grouped by algorithm, data, way and shot; the runs of a group are seeds.")]
    for name, (text, panels) in sections(metric).items():
        for place, panel in enumerate(panels):
            panel.layout = wr.Layout(x=WIDE * (place % 2), y=8 * (place // 2), w=WIDE, h=8)
        runs = wr.Runset(name="Runs", groupby=["Group"])  # of the report's project; W&B would be asked for another
        blocks += [wr.H2(name), wr.P(text), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=TITLE, description="Made by lightning_meta.", blocks=blocks)


def as_sent(made: Any) -> dict[str, Any]:
    """What W&B would get of a workspace or a report."""
    return json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def save(made: Any) -> str:
    """Send a workspace or a report; its address."""
    import wandb

    try:
        made.save()
    except (wandb.Error, OSError, ValueError) as error:
        raise ConfigError(f"W&B did not take the {type(made).__name__.lower()}: {reason(error)}") from error
    return str(made.url)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        f"{PROGRAM} dashboard", description="Save a W&B workspace and a report that compare the runs of a project."
    )
    parser.add_argument("--entity", required=True, metavar="E", help="user or team")
    parser.add_argument("--project", default="lightning_meta", metavar="P", help="(%(default)s)")
    parser.add_argument("--metric", default="acc", metavar="NAME", help="of the runs (%(default)s)")
    parser.add_argument("--dry-run", type=Path, metavar="FILE", help="write what would be sent, as JSON, and end")
    given = parser.parse_args(arguments)
    need("wandb-workspaces", "dashboard")
    made = {make.__name__: make(given.entity, given.project, given.metric) for make in (workspace, report)}
    if given.dry_run:
        given.dry_run.write_text(json.dumps({name: as_sent(one) for name, one in made.items()}, indent=1) + "\n")
        print(given.dry_run)
        return
    check_account()
    for name, one in made.items():
        print(f"{name}: {save(one)}")


def check_account() -> None:
    """Raise `ConfigError` where there is no API key."""
    import wandb

    try:
        wandb.Api()
    except wandb.Error as error:
        raise ConfigError(
            f"{reason(error)} Or set WANDB_API_KEY. Without an account: --trainer.logger trackio in trainings, and "
            "then TRACKIO_DIR=runs/trackio trackio show."
        ) from error
