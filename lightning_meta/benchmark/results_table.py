"""The results table in Markdown: every run that left a result, and the experiments that have none.

python -m lightning_meta.benchmark.results_table [configs/experiment]

Reads the experiment files of the folder, whose header states the paper's figure, and `results/*.json`, the
`result.json` files that runs left.
"""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_meta.composition import compose
from lightning_meta.core.episode import EpisodeShape

HEADER = (
    "| experiment | options | score | paper | tested on | normalisation | inner steps | outer steps | trained in "
    "| hardware |\n|---|---|---|---|---|---|---|---|---|---|"
)
# Options that say where, not what; so do those below them, such as `--trainer.logger.save_dir`.
PLACES = (
    "--config", "--ckpt_path", "--name", "--trainer.logger", "--trainer.accelerator", "--trainer.enable_progress_bar",
    "--data.root",
)  # fmt: skip


def row(result: dict[str, Any], experiment: Path) -> str:
    """One line of the table. Accuracy is in per cent; every score has its 95 % confidence half-width.

    Args:
        result: what a result file says.
        experiment: the file of the experiment, whose header states the paper's figure and which trains so many steps.
    """
    metric = result["metric"]
    scale, unit, digits = (100, " %", 2) if metric == "acc" else (1, f" {metric}", 3)
    score, ci95 = (f"{scale * result[key]:.{digits}f}" for key in (metric, f"{metric}_ci95"))
    if "n_way" in result:
        tested_on = (
            f"{result['episodes']} episodes, {EpisodeShape(result['n_way'], result['k_shot'], result['n_query'])}"
        )
    else:
        tested_on = f"{result['episodes']} optimizees, {result['data']}, {result['unroll_steps']} steps"
    cells = [
        f"`{result['experiment']}`",
        f"`{changed}`" if (changed := options(result["command"])) else "",
        f"{score} ± {ci95}{unit}",
        paper_figure(experiment),
        tested_on,
        result["normalisation"],
        _or_dash(result["eval_inner_steps"]),
        f"{steps:,} of {recipe_steps(experiment):,}" if (steps := trained_steps(result)) else "-",
        "-" if result["fit_seconds"] is None else f"{result['fit_seconds'] / 60:.0f} min",
        result["hardware"],
    ]
    return f"| {' | '.join(cells)} |"


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


def paper_figure(config: Path) -> str:
    """What the header of an experiment file says after `Paper:`; a dash if there is none."""
    stated = re.search(r"^# Paper: +(.+)$", config.read_text(), re.MULTILINE)
    return stated[1] if stated else "-"


def recipe_steps(config: Path) -> int:
    """How many outer steps an experiment trains."""
    return compose(config)["trainer"]["max_steps"]


def table(folder: Path) -> str:
    """The whole table, ordered by result file, and below it the experiments without a result."""
    experiments = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    results = [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]
    rows = [row(result, experiments[result["experiment"]]) for result in results]
    left_out = [f"`{name}`" for name in experiments if name not in {result["experiment"] for result in results}]
    return "\n".join([HEADER, *rows, "", f"Not run: {', '.join(left_out) or 'none'}."])


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if sys.argv[1:] else "configs/experiment")))
