"""Tasks from arrays in memory, and from the tables that come with scikit-learn."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lightning_meta.datamodules.rows import Row
from lightning_meta.datamodules.tables.row_encoder import is_missing
from lightning_meta.datamodules.tables.tables import Tables
from lightning_meta.errors import ConfigError, require_at_least

SklearnTable = Literal["diabetes", "breast_cancer", "wine", "iris", "digits"]
TABLES = get_args(SklearnTable)


class ArrayTables(Tables):
    """Tasks from arrays, for use from Python: the rows with the same entry of `task` are a task.

    Args:
        x: inputs `(E, F)`: numbers, or objects, of which those that are no numbers are categories. `nan` is a gap.
        y: targets `(E,)`: numbers, or with `n_way` 2 or more any names of classes.
        task: names of the tasks `(E,)`.
        names: of the `F` inputs. None: `x0`, `x1` and so on.
        **kwargs: of `Tables`, but `path`, `target` and `task`.
    """

    def __init__(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        task: npt.ArrayLike,
        names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__("arrays", target="y", task="task", **kwargs)
        self.x_EF, self.y_E, self.task_E = np.asarray(x), np.asarray(y), np.asarray(task)
        shapes = [array.shape for array in (self.x_EF, self.y_E, self.task_E)]
        if len(shapes[0]) != 2 or any(shape != shapes[0][:1] for shape in shapes[1:]):
            raise ConfigError(
                f"x, y and task are of shapes {', '.join(map(str, shapes))}; they must be (rows, inputs), (rows,) and "
                "(rows,)."
            )
        self.names = list(names or (f"x{k}" for k in range(shapes[0][1])))
        if len(self.names) != shapes[0][1] or {"y", "task"} & {*self.names}:
            raise ConfigError(
                f"x has {shapes[0][1]} inputs, but there are {len(self.names)} names; none of them may be y or task."
            )
        numbers_EF = self.x_EF if self.x_EF.dtype.kind == "f" else np.zeros(shapes[0])
        if len(endless := np.argwhere(np.isinf(numbers_EF))):
            row, column = endless[0].tolist()
            raise ConfigError(
                f"x has {len(endless)} infinite values, the first in row {row}, {self.names[column]}; leave such rows "
                "out, or put NaN where a value is missing."
            )
        for name, values in (("y", self.y_E), ("task", self.task_E)):
            if gaps := [row for row, value in enumerate(values.tolist()) if is_missing(value)]:
                raise ConfigError(f"{name} has {len(gaps)} gaps, the first in row {gaps[0]}; leave such rows out.")
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ConfigError(f"names has {', '.join(twice)} more than once; give each input a name of its own.")
        if not self.has_classes:
            try:
                finite = bool(np.isfinite(self.y_E.astype(float)).all())
            except (TypeError, ValueError):
                finite = False
            if not finite:
                raise ConfigError("with n_way=1, y must be finite numbers; for classes take n_way 2 or more.")

    def check_there(self) -> None:
        """They are."""

    def read(self) -> Iterator[tuple[str, Row]]:
        for x_F, y, task in zip(self.x_EF.tolist(), self.y_E.tolist(), self.task_E.tolist(), strict=True):
            yield str(task), dict(zip(self.names, x_F, strict=True)) | {"y": y}


class SklearnTables(ArrayTables):
    """A table of scikit-learn, without a download, cut into tasks along one of its columns.

    Tasks are groups of rows next to each other in the order of that column, equally many, up to one: of `diabetes` by
    `bmi`, say, people of about the same body mass index. The column remains an input.

    Args:
        table: `diabetes` is regression; the others have classes.
        by: the column, by its name in scikit-learn.
        tasks: how many.
        **kwargs: of `Tables`, but `path`, `target` and `task`.
    """

    def __init__(
        self,
        table: SklearnTable = "diabetes",
        by: str = "bmi",
        tasks: int = 20,
        **kwargs: Any,
    ) -> None:
        from sklearn import datasets  # a second, which other data do not pay

        require_at_least(3, tasks=tasks)
        if table not in TABLES:
            raise ConfigError(f"table={table!r} must be one of {', '.join(TABLES)}.")
        content = getattr(datasets, f"load_{table}")()
        names = list(content.feature_names)
        if by not in names:
            raise ConfigError(f"by={by}: {table} has no such column; it has {', '.join(names[:12])}.")
        x_EF, y_E = content.data, content.target
        if tasks > len(y_E):
            raise ConfigError(f"tasks={tasks}, but {table} has {len(y_E)} rows.")
        order_E = np.argsort(x_EF[:, names.index(by)], kind="stable")
        task_E = np.arange(len(y_E)) * tasks // len(y_E)
        labels = [f"{by}_{k:03}" for k in task_E]
        super().__init__(x_EF[order_E], y_E[order_E], labels, names, **kwargs)
        self.name = f"{table} by {by}"
