"""CSV files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_meta.reports.style import Curve


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that share their columns; the first one gives the order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def rows_of(curves: Mapping[str, Curve], step: str, ci95: str) -> list[dict[str, float]]:
    """A row for each point: its number, in column `step`, and the mean and interval of each curve, `<name><ci95>`."""
    rows: list[dict[str, float]] = [{step: number} for number in range(len(next(iter(curves.values()))[0]))]
    for name, curve in curves.items():
        for row, mean, half_width in zip(rows, *(values.tolist() for values in curve), strict=True):
            row |= {name: mean, f"{name}{ci95}": half_width}
    return rows
