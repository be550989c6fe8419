"""Ratings from files, in the layout of MovieLens: who rated what, and what the items are like."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_meta.datamodules.rows import Row, open_rows, other_delimiter
from lightning_meta.datamodules.tables.row_encoder import Scale, is_missing, number, word
from lightning_meta.datamodules.tables.tables import Encoding, Tables
from lightning_meta.errors import ConfigError, DataError

HIGHEST = 10.0  # rating; the gain of one is 2 to its power


class RatingsTable(Tables):
    """Users as tasks, items that they have rated as rows: `ratings.csv` beside a table of items, and one of users.

    Inputs are the attributes of item and user, read by `RowEncoder`; a cell such as `Comedy|Romance` has several
    values. Ratings are not scaled. Users are split by fractions, or by lists of their ids. See `Tables` for the rest.

    Args:
        root: the folder of the files.
        ratings: the table of ratings, with the columns `user`, `item` and `rating`; others are not read.
        items: the table of items, with a column `item`.
        users: the table of users, with a column `user`. None: nothing is known of them.
        user, item, rating: names of columns.
        inputs: names of the attributes that are read, of items and users. None: all.
        separator: between the values of a cell.
        skip_small: leave out users with fewer than `k_shot + n_query` ratings, in place of an error.
        **kwargs: of `Tables`, but `path`, `target` and `task`.
    """

    origin = (
        "it must be a table with a row for each rating; MovieLens has one: https://grouplens.org/datasets/movielens."
    )

    def __init__(
        self,
        root: str = "data/movielens",
        ratings: str = "ratings.csv",
        items: str = "movies.csv",
        users: str | None = None,
        user: str = "userId",
        item: str = "movieId",
        rating: str = "rating",
        inputs: Sequence[str] | None = ("genres",),
        separator: str = "|",
        skip_small: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            str(Path(root) / ratings), target=rating, task=user, inputs=inputs, skip_small=skip_small, **kwargs
        )
        if self.has_classes:
            raise ConfigError("ratings are numbers, one user is one regression: n_way must be 1.")
        self.item, self.separator = item, separator
        self.items_path, self.users_path = Path(root) / items, None if users is None else Path(root) / users

    def read(self) -> Iterator[tuple[str, Row]]:
        assert self.task is not None
        items = self.attributes(self.items_path, self.item)
        users = {} if self.users_path is None else self.attributes(self.users_path, self.task)
        of_item, of_user = (next(iter(table.values()), {}) for table in (items, users))
        if both := sorted(of_item.keys() & of_user.keys()):
            raise DataError(
                f"{self.items_path} and {self.users_path} both have a column {both[0]!r}; give each a name of its own."
            )
        if lacking := [name for name in self.inputs or () if name not in of_item | of_user]:
            there = ", ".join(of_item | of_user)
            raise ConfigError(f"inputs: there is no attribute {', '.join(lacking)}; those of the tables are {there}.")
        with open_rows(self.path) as rows:
            for line, row in rows:
                self.check_row(self.path, line, row, (self.task, self.item, self.target))
                user, item = word(row[self.task]), word(row[self.item])
                if item not in items or (users and user not in users):
                    table, what = (self.items_path, item) if item not in items else (self.users_path, user)
                    raise ValueError(f"line {line} rates {item} for {user}, but {table} has no {what}")
                try:
                    value = number(row[self.target])
                except ValueError as error:
                    raise ValueError(f"line {line}: {self.target} is {row[self.target]!r}, no number") from error
                assert value is not None
                if not 0 <= value <= HIGHEST:
                    raise ValueError(
                        f"line {line}: {self.target} is {value:g}, but ratings from 0 to {HIGHEST:g} are read; scale "
                        "all of them"
                    )
                yield user, items[item] | users.get(user, {}) | {self.target: value}

    def attributes(self, path: Path, key: str) -> dict[str, Row]:
        """The rows of a table by their ids, without them; cells of several values as lists."""
        if not path.exists():
            raise DataError(f"{path} is missing; it must be a table with a column {key!r}, and a row for each of them.")
        found: dict[str, Row] = {}
        with open_rows(path) as rows:
            for line, row in rows:
                self.check_row(path, line, row, (key,))
                if (name := word(row[key])) in found:
                    raise ValueError(f"line {line} has {name} once more; give each {key} one row")
                found[name] = {column: self.several(cell) for column, cell in row.items() if column != key}
        return found

    def several(self, cell: Any) -> Any:
        has_several = isinstance(cell, str) and self.separator in cell
        return [part.strip() for part in cell.split(self.separator)] if has_several else cell

    @staticmethod
    def check_row(path: Path, line: int, row: Row, needed: Sequence[str]) -> None:
        """Raise `ValueError` where a row lacks a column or a cell."""
        if lacking := [name for name in needed if is_missing(row.get(name))]:
            columns = [str(column) for column in row]
            raise ValueError(
                f"line {line} has no {', '.join(map(repr, lacking))}; its columns are {', '.join(columns)}. "
                f"{other_delimiter(path, columns, {*needed})}".rstrip(". ")
            )

    @cached_property
    def encoding(self) -> Encoding:
        """Ratings stay as they are: what one gains depends on its height."""
        return super().encoding._replace(target=Scale(0.0, 1.0))
