"""Embeddings of classes, such as those of their names by the text half of an image-text model, from a file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.errors import ConfigError, reason
from lightning_meta.extras import need

WHOLE = "embeddings"  # the name of a tensor that has a row for each class; beside it their "names"
FORM = (
    "a row for each class: in .csv its name, then the numbers; in .pt, .npz or .safetensors a vector under its name, "
    f"or a matrix '{WHOLE}', in .pt and .npz with a list 'names' if rows are not in the order of the classes"
)


class ClassEmbeddings(NamedTuple):
    """Rows `(n, D)`, and the names of their classes; None: they are the classes of a split in its order."""

    rows: Tensor
    names: list[str] | None
    path: Path

    def of(self, classes: Sequence[str] | None, count: int, split: str) -> Tensor:
        """The rows of a split's classes in its order. Raises `ConfigError` where one is missing.

        Args:
            classes: their names, if they have any.
            count: of them.
            split: that has them, for messages.
        """
        if self.names is None:
            if len(self.rows) != count:
                raise ConfigError(
                    f"{self.path} has {len(self.rows)} rows without names, but {split} has {count} classes; give one "
                    "for each class in its order, or names."
                )
            return self.rows
        if classes is None:
            raise ConfigError(
                f"{self.path} has rows by name, but the {count} classes of {split} have no names here; give rows "
                f"without names, a matrix '{WHOLE}' in their order."
            )
        place = {name: row for row, name in enumerate(self.names)}
        if missing := [name for name in classes if name not in place]:
            few = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ConfigError(
                f"{self.path} has no row for {few}, of the {count} classes of {split}; it has "
                f"{', '.join(self.names[:3])} and others, {len(self.names)} in all."
            )
        return self.rows[[place[name] for name in classes]]


def read_class_embeddings(place: str) -> ClassEmbeddings:
    """From a `.csv`, `.npz`, `.pt` or `.safetensors` file. Raises `ConfigError` unless it has a row for each class."""
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"class_embeddings={place}: there is no such file; it has {FORM}.")
    try:
        content = _content(path)
    except ConfigError:
        raise
    except Exception as error:  # readers raise many kinds for files that are none of their own
        raise ConfigError(f"class_embeddings={place} cannot be read ({reason(error)[:120]}); it has {FORM}.") from error
    names: list[str] | None
    if isinstance(content, Mapping) and WHOLE not in content:
        names = [str(name) for name in content]
        widths = sorted({np.shape(row)[-1] if np.ndim(row) == 1 else -1 for row in content.values()})
        if len(widths) != 1 or widths[0] < 1:
            raise ConfigError(f"class_embeddings={place} has rows of different widths, or none; it has {FORM}.")
        rows = torch.stack([torch.as_tensor(row) for row in content.values()])
    else:
        whole: Any = content[WHOLE] if isinstance(content, Mapping) else content
        given = content.get("names") if isinstance(content, Mapping) else None
        rows, names = torch.as_tensor(whole), None if given is None else [str(name) for name in given]
    if rows.ndim != 2 or (names is not None and len(names) != len(rows)):
        found = f"shape {tuple(rows.shape)}" + ("" if names is None else f" and {len(names)} names")
        raise ConfigError(f"class_embeddings={place} has {found}; it has to have {FORM}.")
    if not (rows := rows.float()).isfinite().all():
        raise ConfigError(f"class_embeddings={place} has values that are not finite.")
    return ClassEmbeddings(rows, names, path)


def _content(path: Path) -> Any:
    """A matrix, or vectors by name, or a matrix `embeddings` and perhaps `names`."""
    match path.suffix:
        case ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                lines = [line for line in csv.reader(file) if line]
            if lines and not _is_number(lines[0][-1]):  # a header
                lines = lines[1:]
            return {name: [float(value) for value in values] for name, *values in lines}
        case ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        case ".safetensors":
            need("safetensors", f"reading {path}")
            from safetensors.torch import load_file

            return load_file(path)
        case ".pt" | ".pth":
            return torch.load(path, map_location="cpu", weights_only=True)
    raise ConfigError(f"class_embeddings={path}: take a file .csv, .npz, .pt or .safetensors; it has {FORM}.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
