"""The results table in Markdown, from the `result.json` files that runs leave behind.

python -m lightning_meta.benchmark.results_table configs/experiment/results/*.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from lightning_meta.datamodules.episodes import EpisodeShape

HEADER = (
    "| experiment | score | tested on | normalisation | inner steps | outer steps | trained in | hardware |\n"
    "|---|---|---|---|---|---|---|---|"
)


def row(result: dict[str, Any]) -> str:
    """One line of the table. Accuracy is in per cent; every score has its 95 % confidence half-width."""
    metric = result["metric"]
    scale, unit, digits = (100, " %", 2) if metric == "acc" else (1, f" {metric}", 3)
    score, ci95 = (f"{scale * result[key]:.{digits}f}" for key in (metric, f"{metric}_ci95"))
    shape = EpisodeShape(result["n_way"], result["k_shot"], result["n_query"])
    cells = [
        f"`{result['experiment']}`",
        f"{score} ± {ci95}{unit}",
        f"{result['episodes']} episodes, {shape}",
        result["normalisation"],
        _or_dash(result["eval_inner_steps"]),
        _or_dash(result["outer_steps"]),
        "-" if result["fit_seconds"] is None else f"{result['fit_seconds'] / 60:.0f} min",
        result["hardware"],
    ]
    return f"| {' | '.join(cells)} |"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def table(paths: list[Path]) -> str:
    """The whole table, in the order of the paths."""
    return "\n".join([HEADER, *(row(json.loads(path.read_text())) for path in paths)])


if __name__ == "__main__":
    print(table([Path(path) for path in sys.argv[1:]]))
