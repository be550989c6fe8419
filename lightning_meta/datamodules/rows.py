"""Rows of a file by the names of its columns: CSV, TSV, JSON lines or Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lightning_meta.errors import ConfigError, DataError
from lightning_meta.extras import need

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json")
PARQUET = ".parquet"

Row = dict[str, Any]


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
    """Number of the last line and content of each row."""
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    for row in reader:
        yield reader.line_num, row


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
