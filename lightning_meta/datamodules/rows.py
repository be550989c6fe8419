"""Rows of a file by the names of its columns: CSV, TSV, JSON lines or Parquet."""

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO, runtime_checkable

from torch import Tensor

from lightning_meta.errors import ConfigError, DataError
from lightning_meta.extras import need

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json")
PARQUET = ".parquet"
WITH_MARK = re.compile(r"\s*[-+]?\d*(?P<mark>[.,])\d+([eE][-+]?\d+)?\s*")  # a number that has a fraction

Row = dict[str, Any]


class Examples(NamedTuple):
    """Rows of a user's file.

    Attributes:
        rows: as they are in the file.
        x: inputs `(E, ...)`, as those of the data set.
        targets: one for each row, as in the file; none where the rows are not labelled.
    """

    rows: list[Row]
    x: Tensor
    targets: list[Any]


@runtime_checkable
class ReadsRows(Protocol):
    """A datamodule that makes examples of files of rows. For `predict`."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has of this data."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint has of this data, its `state_dict`; no file is read."""

    def read_examples(self, path: Path, labelled: bool) -> Examples:
        """The rows of a file. Raises `DataError`."""


def read_examples(
    path: Path, columns: Iterable[str], target: str | None, encode: Callable[[list[Row]], Tensor]
) -> Examples:
    """The rows of a file that has these columns, and of `target` a value in each row where it is not None.

    Raises:
        DataError: the file is missing or unreadable, or lacks a column or a value.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; give a table with a row for each example.")
    wanted, rows = {*columns, *([target] if target else [])}, []
    with open_rows(path) as found:
        for line, row in found:
            require_columns(path, line, row, wanted)
            if target and row[target] in (None, ""):
                raise ValueError(f"line {line} must have a value of {target}")
            rows.append(row)
    if not rows:
        raise DataError(f"{path} has no rows.")
    return Examples(rows, encode(rows), [row[target] for row in rows] if target else [])


@contextmanager
def open_rows(path: Path) -> Iterator[Iterator[tuple[int, Row]]]:
    """Number of the line and content of each row of a file: `.csv`, `.tsv`, `.jsonl`, `.json`, each also with `.gz`
    after it, or `.parquet`. Inside, a `ValueError` says what is wrong with a row.

    Raises:
        DataError: the file cannot be read.
        ConfigError: its suffix is not known.
    """
    kind = suffix(path)
    if kind not in (*DELIMITERS, *JSON_LINES, PARQUET):
        known = ", ".join((*JSON_LINES, *DELIMITERS))
        raise ConfigError(f"{path}: a table ends in one of {known}, in one of them and .gz, or in {PARQUET}.")
    try:
        if kind == PARQUET:
            yield parquet_rows(path)
            return
        # -sig: some editors on Windows write a mark. newline: as the csv module asks.
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as lines:
            yield csv_rows(lines, DELIMITERS[kind]) if kind in DELIMITERS else json_rows(lines)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not in UTF-8, it has a byte {error.object[error.start]:#x}. Save it in UTF-8; one from Western "
            "Windows is changed by: iconv -f cp1252 -t utf-8 OLD > NEW."
        ) from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def require_columns(path: Path, line: int, row: Row, wanted: Collection[str], remedy: str = "") -> None:
    """Raise a `ValueError` for `open_rows`, which ends in the remedy, unless a row has all columns that are wanted."""
    if lacking := sorted({*wanted} - row.keys()):
        there = [str(column) for column in row]
        raise ValueError(
            f"line {line} has no column {', '.join(map(repr, lacking))}; its columns are {', '.join(there)}. "
            f"{other_delimiter(path, there, {*wanted}) or remedy}".rstrip(". ")
        )


def suffix(path: Path) -> str:
    """What says the format."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def other_delimiter(path: Path, columns: list[str], wanted: set[str]) -> str:
    """What to do where the wanted columns are there, but parted by another mark; empty where they are not."""
    other = [mark for mark in ";,\t|" if columns and wanted <= {*columns[0].split(mark)} and len(wanted) > 1]
    if not other or suffix(path) not in DELIMITERS:
        return ""
    mark = DELIMITERS[suffix(path)]
    return f"Columns of a {suffix(path)} are parted by {mark!r}, not by {other[0]!r}: save it so"


def csv_rows(lines: TextIO, delimiter: str) -> Iterator[tuple[int, Row]]:
    """Number of the last line and content of each row.

    A table whose columns are parted by `;` in place of commas is one of a spreadsheet where numbers have decimal
    commas, which become points.
    """
    header = lines.readline()
    has_commas = delimiter == "," and "," not in header and ";" in header
    reader = csv.DictReader(chain([header], lines), delimiter=";" if has_commas else delimiter, strict=True)
    if twice := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
        raise ValueError(f"line 1 names the column {twice[0]!r} more than once; give each column a name of its own")
    written: dict[str, str] = {}  # the first number with each mark
    for row in reader:
        if None in row:  # csv's name for cells without a column
            raise ValueError(
                f"line {reader.line_num} has more cells than the {len(row) - 1} columns of the first line; a cell with "
                f"{reader.reader.dialect.delimiter!r} in it is put in quotes"
            )
        if has_commas:
            row = {name: _with_point(cell, written) for name, cell in row.items()}
            if len(written) > 1:
                raise ValueError(
                    f"line {reader.line_num}: of {written[',']} and {written['.']} one has a decimal comma and the "
                    "other a decimal point or digits in groups; write all numbers in one way"
                )
        yield reader.line_num, row


def _with_point(cell: str | None, written: dict[str, str]) -> str | None:
    """A cell with its decimal comma as a point; notes in `written` which of the two marks it had."""
    match = WITH_MARK.fullmatch(cell or "")
    if cell is None or match is None:
        return cell
    written.setdefault(match["mark"], cell)
    return cell.replace(",", ".")


def json_rows(lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    """Number and content of each line that is not empty."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON ({error}); JSON lines have one object on each line") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object; JSON lines have one on each line")
        yield number, row


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    need("pyarrow", f"reading {path}")
    from pyarrow import parquet

    yield from enumerate(parquet.read_table(path).to_pylist(), start=1)
