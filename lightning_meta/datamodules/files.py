"""Files of a kind in folders, and writing those that other runs may read or write at the same time."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightning_meta.errors import DataError


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

MIDI = FileKind("MIDI files", (".mid", ".midi"))


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """A path to write to in the place of `path`, where the file appears once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        os.replace(unfinished, path)


def sub_folders(folder: Path, kind: FileKind = IMAGES) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(kind.hidden))


def example_files(folder: Path, kind: FileKind = IMAGES) -> list[Path]:
    """The images, or what else, in the folder of a class, ordered by name. Raises `DataError` if there are none.

    Hidden files are passed over, among them macOS's `._X.png`, which it puts beside `X.png` when it copies.
    """
    files = visible_files(folder, of_kind=True, kind=kind)
    if not files:
        raise DataError(
            f"the class folder {folder} has no {kind.name} ({', '.join(kind.suffixes)}); add some or remove the folder."
        )
    return files


def visible_files(folder: Path, of_kind: bool, kind: FileKind = IMAGES) -> list[Path]:
    """The files in a folder that are of a kind, or else those that are not, ordered by name, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if (path.suffix.lower() in kind.suffixes) == of_kind
        and not path.name.startswith(kind.hidden)
        and path.is_file()
    )


def files_below(folder: Path, kind: FileKind) -> list[Path]:
    """The files of a kind in a folder and in all folders within it, ordered by name, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in kind.suffixes
        and not any(part.startswith(kind.hidden) for part in path.relative_to(folder).parts)
        and path.is_file()
    )
