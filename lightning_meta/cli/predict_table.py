"""A trained TabPFN, of classes or of numbers, on a table of a user's: rows with a target, and others in question."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.algorithms.in_context.tab_pfn import TabPFN
from lightning_meta.algorithms.in_context.tab_pfn_regression import TabPFNRegression
from lightning_meta.cli.predict_rows import NORMAL_95, of_each
from lightning_meta.datamodules.class_split import shortened
from lightning_meta.datamodules.rows import Row, open_rows, read_examples
from lightning_meta.datamodules.tables.row_encoder import MOST_CATEGORIES, RowEncoder, is_missing, numbers, word
from lightning_meta.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lightning_meta.interop.sklearn import ReadsTables


def predict_table(
    module: TabPFN | TabPFNRegression, support: Path, query: Path, target: str | None = None
) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows of the query file with what is predicted, and what is to be said of both files.

    Classes get `predicted` and `probability`; numbers `predicted` and the ends of a 95 % interval, `low` and `high`.

    What the columns are is learned from the support file: those that are no numbers are categories. The module is used
    as scikit-learn uses it, in the mean over several orders of the columns.

    Args:
        module: the trained one.
        support, query: files with the same columns.
        target: the column to be predicted. None: the one that the support has and the query has not.

    Raises:
        DataError: of the files.
        ConfigError: it cannot be told which column is to be predicted.
    """
    from lightning_meta.interop.sklearn import (
        TabPFNClassifier,
        TabPFNRegressor,
    )  # a second, which other runs do not pay

    target = target or the_target(support, query)
    names = [name for name in columns_of(support) if name != target]
    known = read_examples(support, names, target, unread)
    absent: list[str] = []
    if isinstance(module, TabPFN):
        model: ReadsTables = TabPFNClassifier(module)
        targets: list[Any]
        targets, described = classes_of(known.targets, target, support)
    else:
        model = TabPFNRegressor(module)
        targets, described = numbers_of(known.targets, target, support)
    encoder = learned(known.rows, names, support)
    asked = read_examples(query, names, None, unread)
    check_numbers(encoder, asked.rows, query, support)
    model.fit(encoder.encode(known.rows).numpy(), targets)
    columns = answers(model, encoder.encode(asked.rows).numpy())
    rows = [row | {name: cells[place] for name, cells in columns.items()} for place, row in enumerate(asked.rows)]
    if isinstance(module, TabPFN):
        absent = sorted({word(row[target]) for row in asked.rows if not is_missing(row.get(target))} - {*targets})
    left_out = [name for name in names if name not in encoder.columns]
    unseen = "; ".join(f"{name}: {shortened(values)}" for name, values in encoder.unseen(asked.rows).items())
    lines = {
        f"the same in all rows of {support}, left out: {shortened(left_out)}": left_out,
        f"{query} has categories that {support} has not, which count as missing ({unseen})": unseen,
        f"{query} has classes that {support} has not, so nothing is taken for them: {shortened(absent)}": absent,
        f"{len(encoder.features)} features, of which each of the {model.orders} orders has {module.features}": (
            len(encoder.features) > module.features
        ),
    }
    return rows, [
        ("support", described),
        ("query", f"{len(rows)} rows of {len(encoder.columns)} columns"),
        *(("note", line) for line, there in lines.items() if there),
    ]


def classes_of(cells: Sequence[Any], target: str, path: Path) -> tuple[list[str], str]:
    """Names of the classes of rows, and these in words. `DataError` where all are of one."""
    classes = [word(cell) for cell in cells]
    counts = {name: classes.count(name) for name in sorted({*classes})}
    if len(counts) < 2:
        raise DataError(f"{path} has rows of one class, {classes[0]}; give rows of two or more.")
    return classes, f"{len(counts)} classes of {target}, {of_each([*counts.values()], 'row')}"


def numbers_of(cells: Sequence[Any], target: str, path: Path) -> tuple[list[float], str]:
    """Targets of rows, and these in words. `DataError` where one is no number, or there is one row only."""
    found = [value for value in numbers(cells) or () if value is not None]
    if len(found) < len(cells):
        raise DataError(f"{path}: {target} must be a number in each row, as the run predicts numbers.")
    if len(found) < 2:
        raise DataError(f"{path} has one row; give two or more.")
    return found, f"{len(found)} rows with {target} from {min(found):g} to {max(found):g}"


def answers(model: "ReadsTables", x: npt.NDArray[np.float32]) -> dict[str, list[Any]]:
    """Columns of what is predicted for rows."""
    if hasattr(model, "classes_"):
        chances_QC = model.predict_proba(x)
        names = [str(model.classes_[label]) for label in chances_QC.argmax(1)]
        return {"predicted": names, "probability": chances_QC.max(1).round(6).tolist()}
    mean_Q, std_Q = model.predict(x, return_std=True)
    reach_Q = NORMAL_95 * std_Q
    ends = {"predicted": mean_Q, "low": mean_Q - reach_Q, "high": mean_Q + reach_Q}
    return {name: values.round(6).tolist() for name, values in ends.items()}


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a file. `DataError` where it is missing or empty."""
    if not path.is_file():
        raise DataError(f"{path} is no file; give a table with a row for each example.")
    with open_rows(path) as rows:
        first = next(rows, None)
    if first is None:
        raise DataError(f"{path} has no rows.")
    return [str(name) for name in first[1]]


def the_target(support: Path, query: Path) -> str:
    """The column that one file has and the other has not."""
    asked = columns_of(query)
    lacking = [name for name in columns_of(support) if name not in asked]
    if len(lacking) != 1:
        what = (
            f"lacks several columns of {support} ({shortened(lacking)})" if lacking else f"has all columns of {support}"
        )
        raise ConfigError(f"{query} {what}, so it cannot be told which one is to be predicted; name it: --target NAME.")
    return lacking[0]


def unread(rows: Sequence[Row]) -> Tensor:
    """No inputs: how these are made is learned later."""
    return torch.empty(len(rows), 0)


def learned(rows: Sequence[Row], names: Sequence[str], path: Path) -> RowEncoder:
    """What the columns of a file are. `DataError` where there is nothing to tell rows apart by."""
    for name in names:
        cells = [row[name] for row in rows]
        values = {word(cell) for cell in cells if not is_missing(cell)}
        if numbers(cells) is None and len(values) > MOST_CATEGORIES:
            raise DataError(
                f"{path}: column {name!r} has {len(values)} different values that are no numbers, more than "
                f"{MOST_CATEGORIES} categories; take it out of the file."
            )
    encoder = RowEncoder.learn(rows, names)
    if not encoder.features or not encoder.encode(rows).std(0, correction=0).any():
        raise DataError(f"{path} has no column beside the target that is not the same in all rows.")
    return encoder


def check_numbers(encoder: RowEncoder, rows: Sequence[Row], path: Path, support: Path) -> None:
    """Raise `DataError` where a column of numbers has another cell."""
    for name in encoder.scales:
        others = [word(row[name]) for row in rows if numbers([row[name]]) is None]
        if others:
            raise DataError(
                f"{path}: column {name!r} is one of numbers in {support}, but has the cell {others[0]!r}; correct it, "
                "or take the column out of both files."
            )
