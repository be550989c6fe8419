"""Kinds of files, and writing those that other runs may read or write at the same time."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class FileKind(NamedTuple):
    """What the examples of a data set are, in files.

    Attributes:
        name: of several, in messages.
        suffixes: of their files, in small letters.
        hidden: what the names of files and folders begin with that are passed over.
    """

    name: str
    suffixes: tuple[str, ...]
    hidden: tuple[str, ...] = (".",)


IMAGES = FileKind("images", (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
SOUNDS = FileKind("sounds", (".wav",), (".", "_"))  # Speech Commands has noise of the background in a folder with _


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """A path to write to in the place of `path`, where the file appears once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        os.replace(unfinished, path)
