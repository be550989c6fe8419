"""Real tables, few rows: a trained TabPFN beside scikit-learn's classifiers, on the same splits of its tables.

python -m lightning_meta benchmark tables RUN [--rows 20 50] [--splits 8] [--tables iris wine breast_cancer digits]

RUN is the name of an experiment or the folder of a run. Splits are drawn by their number, classes in proportion; 100
other rows are classified. Printed is the accuracy in per cent, with half of its 95 % interval over splits (Student's
t), and for each number of rows the mean rank of a method over the tables (1 is best; the same accuracy shares a rank).
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_meta.core.statistics import mean_and_t95
from lightning_meta.datamodules.tables.array_tables import TABLES
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.metrics import EpisodicAccuracy

QUERIES = 100
CLASSIFICATION = tuple(name for name in TABLES if name != "diabetes")


class Row(NamedTuple):
    """A method on a table: accuracies of the splits, from 0 to 1."""

    table: str
    rows: int
    method: str
    acc: list[float]


def methods(run: Any) -> dict[str, Callable[[int], Any]]:
    """What makes each classifier, by the number of a split."""
    from lightning_meta.interop.sklearn import TabPFNClassifier

    return {"TabPFN": lambda split: TabPFNClassifier(run, seed=split), **rivals()}


def rivals() -> dict[str, Callable[[int], Any]]:
    """Those of scikit-learn."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "logistic regression": lambda split: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "3 nearest neighbours": lambda split: make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
        "random forest": lambda split: RandomForestClassifier(100, random_state=split),
    }


def measure(run: Any, tables: Sequence[str], sizes: Sequence[int], splits: int) -> list[Row]:
    """Every method on the same splits."""
    from sklearn import datasets
    from sklearn.model_selection import StratifiedShuffleSplit

    rows = []
    for table in tables:
        x, y = getattr(datasets, f"load_{table}")(return_X_y=True)
        for size in sizes:
            if not len(np.unique(y)) <= size <= len(y) - QUERIES:
                raise ConfigError(
                    f"--rows {size}: of {table} {len(np.unique(y))} to {len(y) - QUERIES} rows can be learned from, "
                    f"one of each class and all but {QUERIES}."
                )
            drawn = list(StratifiedShuffleSplit(splits, train_size=size, test_size=QUERIES, random_state=0).split(x, y))
            for name, make in methods(run).items():
                acc = [make(k).fit(x[here], y[here]).score(x[there], y[there]) for k, (here, there) in enumerate(drawn)]
                rows.append(Row(table, size, name, acc))
    return rows


def mean_ranks(rows: Sequence[Row], size: int) -> dict[str, float]:
    """Of each method over the tables, by the mean accuracy."""
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.rows == size:
            means.setdefault(row.table, {})[row.method] = float(np.mean(row.acc))
    ranks: dict[str, list[float]] = {}
    for of_table in means.values():
        for method, acc in of_table.items():
            better, same = (sum(f(other) for other in of_table.values()) for f in (acc.__lt__, acc.__eq__))
            ranks.setdefault(method, []).append(better + (same + 1) / 2)
    return {method: float(np.mean(places)) for method, places in ranks.items()}


def report(rows: Sequence[Row]) -> str:
    """The table in Markdown, a line for each table and number of rows."""
    names = list(dict.fromkeys(row.method for row in rows))
    lines = ["| table, rows | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for table, size in dict.fromkeys((row.table, row.rows) for row in rows):
        cells = []
        for row in rows:
            if (row.table, row.rows) == (table, size):
                mean, ci95 = mean_and_t95(torch.tensor(row.acc))
                cells.append(EpisodicAccuracy.number(mean, ci95))
        lines.append(f"| {table}, {size} | " + " | ".join(cells) + " |")
    for size in dict.fromkeys(row.rows for row in rows):
        ranks = mean_ranks(rows, size)
        lines.append(f"| mean rank, {size} | " + " | ".join(f"{ranks[name]:.2f}" for name in names) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_meta benchmark tables", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="name of an experiment or folder of a run")
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 50], help="to learn from")
    parser.add_argument("--splits", type=int, default=8, help="of each table")
    parser.add_argument("--tables", nargs="+", choices=CLASSIFICATION, default=list(CLASSIFICATION))
    args = parser.parse_args(arguments)
    require_at_least(2, splits=args.splits)
    print(report(measure(args.run, args.tables, args.rows, args.splits)))
