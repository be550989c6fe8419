"""Real tables, few rows: a trained TabPFN beside scikit-learn's estimators, on the same splits of its tables.

python -m lightning_meta benchmark tables RUN [--rows 20 50] [--splits 8] [--tables iris wine breast_cancer digits]

RUN is the name of an experiment or the folder of a run. Splits are drawn by their number, classes in proportion; 100
other rows are asked for. Printed is the accuracy in per cent, of a regression on `diabetes` the coefficient of
determination R2, with half of its 95 % interval over splits (Student's t), and for each number of rows the mean rank of
a method over the tables (1 is best; the same score shares a rank).
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_meta.algorithms.in_context.tab_pfn_regression import TabPFNRegression
from lightning_meta.core.statistics import mean_and_t95
from lightning_meta.datamodules.tables.array_tables import TABLES
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.metrics import EpisodicAccuracy, EpisodicR2

QUERIES = 100
REGRESSION = ("diabetes",)
CLASSIFICATION = tuple(name for name in TABLES if name not in REGRESSION)


class Row(NamedTuple):
    """A method on a table: accuracies of the splits, from 0 to 1, or R2."""

    table: str
    rows: int
    method: str
    scores: list[float]


def methods(run: Any, numbers: bool = False) -> dict[str, Callable[[int], Any]]:
    """What makes each classifier, or of numbers each regressor, by the number of a split."""
    from lightning_meta.interop.sklearn import TabPFNClassifier, TabPFNRegressor

    if numbers:
        return {"TabPFN": lambda split: TabPFNRegressor(run, seed=split), **rivals_in_regression()}
    return {"TabPFN": lambda split: TabPFNClassifier(run, seed=split), **rivals()}


def rivals_in_regression() -> dict[str, Callable[[int], Any]]:
    """Those of scikit-learn, in their usual settings; ridge regression chooses its penalty by leaving one out."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "ridge regression": lambda split: make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 11))),
        "5 nearest neighbours": lambda split: make_pipeline(StandardScaler(), KNeighborsRegressor(5)),
        "random forest": lambda split: RandomForestRegressor(100, random_state=split),
    }


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
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    rows = []
    for table in tables:
        x, y = getattr(datasets, f"load_{table}")(return_X_y=True)
        numbers = table in REGRESSION
        split = ShuffleSplit if numbers else StratifiedShuffleSplit
        least, what = (6, "6") if numbers else (len(np.unique(y)), "one of each class")
        for size in sizes:
            if not least <= size <= len(y) - QUERIES:
                raise ConfigError(
                    f"--rows {size}: of {table} {least} to {len(y) - QUERIES} rows can be learned from, {what} and all "
                    f"but {QUERIES}."
                )
            drawn = list(split(splits, train_size=size, test_size=QUERIES, random_state=0).split(x, y))
            for name, make in methods(run, numbers).items():
                scores = [
                    make(k).fit(x[here], y[here]).score(x[there], y[there]) for k, (here, there) in enumerate(drawn)
                ]
                rows.append(Row(table, size, name, scores))
    return rows


def mean_ranks(rows: Sequence[Row], size: int) -> dict[str, float]:
    """Of each method over the tables, by the mean score."""
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.rows == size:
            means.setdefault(row.table, {})[row.method] = float(np.mean(row.scores))
    ranks: dict[str, list[float]] = {}
    for of_table in means.values():
        for method, score in of_table.items():
            better, same = (sum(f(other) for other in of_table.values()) for f in (score.__lt__, score.__eq__))
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
                mean, ci95 = mean_and_t95(torch.tensor(row.scores))
                metric = EpisodicR2 if table in REGRESSION else EpisodicAccuracy
                cells.append(metric.number(mean, ci95))
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
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="those that the run is for")
    args = parser.parse_args(arguments)
    require_at_least(2, splits=args.splits)
    from lightning_meta.interop.sklearn import trained

    module = trained(args.run)
    possible = REGRESSION if isinstance(module, TabPFNRegression) else CLASSIFICATION
    if others := [table for table in args.tables or () if table not in possible]:
        raise ConfigError(
            f"--tables {' '.join(others)}: {args.run} is a {type(module).__name__}, which is for {', '.join(possible)}."
        )
    print(report(measure(module, args.tables or possible, args.rows, args.splits)))
