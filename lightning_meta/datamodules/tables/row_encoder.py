"""Cells of a table as numbers: what is learned from the rows of meta-training, and said of every other row."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lightning_meta.datamodules.rows import Row
from lightning_meta.errors import ConfigError

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
MOST_CATEGORIES = 100


class Scale(NamedTuple):
    """Of a column of numbers: `(x - mean) / std`; and whether cells were missing, which then is a feature as well."""

    mean: float
    std: float
    has_gaps: bool = False

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Self:
        """Of values that are not all the same; None is a gap."""
        known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        return cls(known.mean().item(), known.std(correction=0).item(), len(known) < len(values))


class RowEncoder:
    """Features of rows: numbers scaled by mean and deviation, a feature for each category, and one for gaps.

    A cell may hold several categories, as a list: it has the features of all of them. A number that is missing is the
    mean. A category that meta-training has not, or that is missing, has none of the features of its column. A column of
    numbers that is constant in meta-training is left out.

    Args:
        scales: of the columns of numbers.
        categories: the values of the other columns, each in the order of its features.
    """

    def __init__(self, scales: dict[str, Scale], categories: dict[str, list[str]]) -> None:
        self.scales, self.categories = scales, categories

    @classmethod
    def learn(cls, rows: Sequence[Row], columns: Iterable[str], categorical: Collection[str] = ()) -> Self:
        """From the rows of meta-training. A column is one of numbers where all its cells are, unless it is named."""
        scales, categories = {}, {}
        for column in columns:
            cells = [row.get(column) for row in rows]
            values = None if column in categorical else numbers(cells)
            if values is None:
                known = sorted({name for cell in cells for name in words(cell)})
                if len(known) > MOST_CATEGORIES:
                    raise ConfigError(
                        f"column {column!r} has {len(known)} different values that are no numbers (such as "
                        f"{known[0]!r}), more than {MOST_CATEGORIES} categories; leave it out: --data.inputs names the "
                        "columns that are read."
                    )
                categories[column] = known
            elif len({*values} - {None}) > 1:
                scales[column] = Scale.of(values)
        return cls(scales, categories)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are read."""
        return [*self.scales, *self.categories]

    @property
    def features(self) -> list[str]:
        """Names of the features, in their order."""
        gaps = [f"{column} missing" for column, scale in self.scales.items() if scale.has_gaps]
        chosen = [f"{column}={value}" for column, values in self.categories.items() for value in values]
        return [*self.scales, *gaps, *chosen]

    def encode(self, rows: Sequence[Row]) -> Tensor:
        """Features `(E, F)`, float32. `ConfigError` where a cell of a column of numbers is none."""
        parts, gaps = [], []
        for column, (mean, std, has_gaps) in self.scales.items():
            values = numbers([row.get(column) for row in rows])
            if values is None:
                raise ConfigError(
                    f"column {column!r} is one of numbers in meta-training, but has other cells elsewhere; correct "
                    f"them, or read it as categories: --data.categorical [{column}]."
                )
            parts.append([0.0 if value is None else (value - mean) / std for value in values])
            if has_gaps:
                gaps.append([float(value is None) for value in values])
        chosen = []
        for column, known in self.categories.items():
            cells = [words(row.get(column)) for row in rows]
            chosen += [[float(value in cell) for cell in cells] for value in known]
        return torch.tensor([*parts, *gaps, *chosen], dtype=torch.float64).T.float().contiguous()

    def unseen(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        """Of each column of categories, the values in these rows that meta-training has not."""
        found = {
            column: sorted({name for row in rows for name in words(row.get(column))} - {*known})
            for column, known in self.categories.items()
        }
        return {column: values for column, values in found.items() if values}

    def state_dict(self) -> dict[str, Any]:
        return {"scales": {name: list(scale) for name, scale in self.scales.items()}, "categories": self.categories}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        return cls({name: Scale(*scale) for name, scale in state["scales"].items()}, state["categories"])


def word(cell: Any) -> str:
    """A cell as a name; spaces around it do not count."""
    return str(cell).strip()


def words(cell: Any) -> list[str]:
    """The names in a cell: those of a list, one, or none where it is missing."""
    cells = cell if isinstance(cell, list | tuple) else [cell]
    return [word(part) for part in cells if not is_missing(part)]


def is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or word(cell).lower() in MISSING


def number(cell: Any) -> float | None:
    """A cell as a number, or None where it is missing. `ValueError` where it is neither, or not finite."""
    if is_missing(cell):
        return None
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{cell} is not finite")
    return value


def numbers(cells: Iterable[Any]) -> list[float | None] | None:
    """All cells as numbers; None where one is no number."""
    try:
        return [number(cell) for cell in cells]
    except (TypeError, ValueError):
        return None
