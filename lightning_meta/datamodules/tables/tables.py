"""Tasks from tables: the rows of a task are its examples, a column is what is to be predicted."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import Split
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.class_split import (
    ClassSplit,
    check_any,
    check_listed,
    check_split,
    split_names,
)
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.datamodules.rows import (
    DELIMITERS,
    JSON_LINES,
    PARQUET,
    Examples,
    Row,
    open_rows,
    read_examples,
    require_columns,
    suffix,
)
from lightning_meta.datamodules.tables.row_encoder import RowEncoder, Scale, is_missing, number, word
from lightning_meta.datamodules.task_bank import GroupedClassBank, TaskBank
from lightning_meta.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class Encoding(NamedTuple):
    """What is learned from the rows of meta-training: of the inputs, and of targets that are numbers."""

    inputs: RowEncoder
    target: Scale | None


class Tables(EpisodicDataModule):
    """Tasks that are groups of rows: a table whose column `task` names them, or a folder with a table for each.

    Tables are CSV, TSV or JSON lines (each also with `.gz` after it) or Parquet, with named columns. Inputs are read
    by `RowEncoder`: numbers are scaled, other columns are categories, gaps are allowed. What it takes of the data, and
    the scale of the targets, is learned from the tasks of meta-training alone, and a checkpoint keeps it.

    With `n_way` 1 (the default) targets are numbers, scaled to mean 0 and deviation 1: a mean squared error of 1 is
    that of the mean of meta-training. With more, targets are classes: an episode has `n_way` classes of one task.

    Tasks are split by lists of their names, `--data.split.train train.txt` and so on, or shared out by fractions. A
    task of a folder has the name of its file, without what says the format.

    Args:
        path: of the table, or of the folder.
        target: name of the column to be predicted.
        task: name of the column that says the task. None: `path` is a folder.
        inputs: names of the columns that are read. None: all but `target` and `task`.
        categorical: columns of inputs whose numbers are names.
        split: which tasks are for training, validation and test. A relative path starts at the folder of the data.
        skip_small: leave out tasks, and classes, with fewer rows than `k_shot + n_query`, in place of an error.
        n_way, k_shot, n_query: rows of an episode; with classes, of each class.
        **kwargs: of `EpisodicDataModule`.
    """

    origin = ""  # a sentence that says where the data can be had

    def __init__(
        self,
        path: str,
        target: str = "target",
        task: str | None = None,
        inputs: Sequence[str] | None = None,
        categorical: Sequence[str] = (),
        split: ClassSplit = ClassSplit(fractions=(0.64, 0.16, 0.2)),  # noqa: B008 - never mutated
        skip_small: bool = False,
        n_way: int = 1,
        k_shot: int = 10,
        n_query: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        self.path, self.target, self.task, self.task_split = Path(path), target, task, split
        self.inputs, self.categorical, self.skip_small = inputs, tuple(categorical), skip_small
        ways = {shape.n_way for shape in self.shapes.values()}
        self.has_classes = n_way > 1
        if target in (inputs or ()):
            raise ConfigError(
                f"inputs={list(inputs or ())} have the target {target!r} itself; leave it out of --data.inputs."
            )
        if 1 in ways and len(ways) > 1:
            raise ConfigError(
                f"n_way is {sorted(ways)} in different splits: targets are either numbers (1) or classes."
            )
        check_split(split)

    def prepare_data(self) -> None:
        """Read the tables. Raises `DataError` if one is missing or unreadable."""
        for split, names in self.tasks.items():
            rows = sum(len(self.rows[name]) for name in names)
            log.info("%s: %d rows of %d tasks for %s.", self.path, rows, len(names), split)
        log.info("Features: %s.", ", ".join(self.encoding.inputs.features))

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(self) -> Iterator[tuple[str, Row]]:
        """The task and the content of each row. Raises `DataError`."""
        if self.task is None:
            for file in self._files():
                yield from ((task_of(file), row) for row in self._read(file))
            return
        if self.path.is_dir():
            raise ConfigError(
                f"{self.path} is a folder, with a table for each task: set --data.task null, or name a file."
            )
        yield from ((word(row[self.task]), row) for row in self._read(self.path))

    def _read(self, file: Path) -> Iterator[Row]:
        wanted = {self.target, *(self.inputs or ()), *((self.task,) if self.task else ())}
        with open_rows(file) as rows:
            for line, row in rows:
                require_columns(file, line, row, wanted)
                if is_missing(row[self.target]) or (self.task and is_missing(row[self.task])):
                    needed = f"{self.target} and {self.task}" if self.task else self.target
                    raise ValueError(f"line {line} must have a value of {needed}")
                if not self.has_classes:
                    try:
                        number(row[self.target])
                    except (TypeError, ValueError) as error:
                        raise ValueError(
                            f"line {line}: {self.target} is {row[self.target]!r}, but with n_way=1 it must be a finite "
                            "number; for classes take n_way 2 or more"
                        ) from error
                yield row

    def _same_columns(self, files: Sequence[Path]) -> None:
        """A column that some tables of a folder lack is most likely misspelt there."""
        first: list[str] | None = None
        for file in files:
            with open_rows(file) as rows:
                columns = next(({*map(str, row)} for _, row in rows), None)
            if columns is None or suffix(file) in JSON_LINES:  # whose rows need not have all
                continue
            first = first or sorted(columns)
            if other := columns ^ {*first}:
                unlike = ", ".join(sorted(other))
                raise DataError(
                    f"{file} and {files[0]} do not have the same columns: {unlike}. Give all tables of a folder the "
                    "same, or name those that are read: --data.inputs."
                )

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            raise DataError(
                f"{self.path} is not a folder with a table for each task; for one table name the column that says the "
                "task: --data.task COLUMN."
            )
        known = (*DELIMITERS, *JSON_LINES, PARQUET)
        files = sorted(file for file in self.path.iterdir() if suffix(file) in known)
        if not files:
            raise DataError(f"{self.path} has no file that ends in one of {', '.join(known)}.")
        if self.inputs is None:
            self._same_columns(files)
        return files

    def check_there(self) -> None:
        """Raise `DataError` where there is nothing to read."""
        if not self.path.exists():
            remedy = self.origin or "it must be a table, or a folder with a table for each task."
            raise DataError(f"{self.path} is missing; {remedy}")

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """All rows by task, in the order of the files."""
        self.check_there()
        found: dict[str, list[Row]] = {}
        for task, row in self.read():
            found.setdefault(task, []).append(row)
        if not found:
            raise DataError(f"{self.path} has no rows.")
        return self._large(found) if self.skip_small else found

    def _large(self, found: dict[str, list[Row]]) -> dict[str, list[Row]]:
        """The tasks, and where there are classes the classes of each, that have enough rows."""
        least = max(shape.k_shot + shape.n_query for shape in self.shapes.values())
        if not self.has_classes:
            kept = {task: rows for task, rows in found.items() if len(rows) >= least}
            needed = f"{least} rows"
        else:
            size = {task: Counter(word(row[self.target]) for row in rows) for task, rows in found.items()}
            most = max(shape.n_way for shape in self.shapes.values())
            kept = {
                task: [row for row in rows if size[task][word(row[self.target])] >= least]
                for task, rows in found.items()
                if sum(count >= least for count in size[task].values()) >= most
            }
            needed = f"{most} classes of {least} rows"
        rows_of = [sum(map(len, tasks.values())) for tasks in (found, kept)]
        log.info(
            "skip_small leaves out %d of %d tasks, which have not %s, and %d of %d rows.",
            len(found) - len(kept), len(found), needed, rows_of[0] - rows_of[1], rows_of[0],
        )  # fmt: skip
        if not kept:
            raise DataError(
                f"none of the {len(found)} tasks of {self.path} has {needed} (k_shot + n_query of each); lower k_shot "
                "or n_query."
            )
        return kept

    @cached_property
    def tasks(self) -> dict[Split, list[str]]:
        """Names of the tasks of each split."""
        tasks = split_names(sorted(self.rows), self.task_split, self.path, "tasks")
        if not self.task_split.fractions:
            check_listed(tasks, self.rows, self.path, "a task", "tasks")
        return tasks

    @cached_property
    def encoding(self) -> Encoding:
        rows = [row for name in self.tasks["train"] for row in self.rows[name]]
        if not rows:
            raise ConfigError(
                f"{self.path} has no tasks for meta-training, from which the scales and categories of columns are "
                "learned; a test has those of a checkpoint: --ckpt_path. (In Python: "
                "data.restore(trained.state_dict()), where `trained` is the data of the training.)"
            )
        there = dict.fromkeys(column for row in rows for column in row)
        columns = self.inputs or [column for column in there if column not in (self.target, self.task)]
        inputs = RowEncoder.learn(rows, columns, self.categorical)
        if not inputs.features:
            raise DataError(f"{self.path} has no column of inputs beside {self.target!r} with a value in it.")
        if self.has_classes:
            return Encoding(inputs, None)
        targets = [number(row[self.target]) for row in rows]
        if len({*targets}) == 1:
            raise DataError(f"{self.target} is {targets[0]:g} in all rows of meta-training; there is nothing to learn.")
        return Encoding(inputs, Scale.of(targets))

    # ---- episodes -----------------------------------------------------------------------------------------------

    def load_source(self, split: Split) -> TaskSource:
        check_any(self.tasks[split], split, self.task_split, self.path, "tasks")
        tasks = [self.rows[name] for name in self.tasks[split]]
        if self.has_classes:
            return GroupedClassBank.from_tasks([self._by_class(rows) for rows in tasks])
        return TaskBank.from_tasks([Batch(self.encoding.inputs.encode(rows), self._targets(rows)) for rows in tasks])

    def _targets(self, rows: Sequence[Row]) -> Tensor:
        assert self.encoding.target is not None
        mean, std, _ = self.encoding.target
        values_E = torch.tensor([float(row[self.target]) for row in rows], dtype=torch.float64)
        return ((values_E - mean) / std).float()[:, None]

    def _by_class(self, rows: Sequence[Row]) -> list[Tensor]:
        of_class: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            of_class[word(row[self.target])].append(row)
        return [self.encoding.inputs.encode(of_class[name]) for name in sorted(of_class)]

    def training_inputs(self) -> Tensor:
        return self.encoding.inputs.encode([row for name in self.tasks["train"] for row in self.rows[name]])

    def state_dict(self) -> dict[str, Any]:
        inputs, target = self.encoding
        return {"inputs": inputs.state_dict(), "target": None if target is None else list(target)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict == self.state_dict():
            return
        log.info("Scales and categories are those of the checkpoint, in place of those of %s.", self.path)
        self.restore(state_dict)
        for split in self.sources:  # Lightning sets up before it loads
            self.sources[split] = self.load_split(split)

    def restore(self, state: dict[str, Any]) -> None:
        target = state["target"]
        self.encoding = Encoding(
            RowEncoder.from_state_dict(state["inputs"]), None if target is None else Scale(*target)
        )

    def read_examples(self, path: Path, labelled: bool) -> Examples:
        inputs = self.encoding.inputs
        return read_examples(path, inputs.columns, self.target if labelled else None, inputs.encode)


def task_of(file: Path) -> str:
    """The name of a file without what says the format."""
    return file.name.removesuffix(".gz").removesuffix(suffix(file))
