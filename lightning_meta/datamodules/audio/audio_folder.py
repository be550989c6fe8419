"""A few-shot data set from your own sounds: a folder of WAV files for each class, or one with a table of classes."""

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.audio.audio_classes import AudioFiles
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.class_split import (
    ClassSplit,
    check_any,
    check_listed,
    check_split,
    find_classes,
    split_names,
)
from lightning_meta.datamodules.files import example_files
from lightning_meta.datamodules.rows import open_rows, require_columns
from lightning_meta.errors import DataError


class AudioFolder(AudioFiles):
    """Sounds of your own. Classes may have different numbers of sounds, of any length and sample rate.

    - A folder for each class, `<root>/<class>/*.wav`, split by folder, by list or by fraction as `ImageFolder` is.
      Speech Commands is laid out so: unpack it to `<root>`. Its `_background_noise_` is no class: folders whose names
      begin with an underscore are passed over.
    - With a `table`, a CSV file that says the class of each file of one folder, split by list or by fraction. ESC-50
      is laid out so: `--data.table meta/esc50.csv --data.folder audio`.

    Files are WAV: PCM of 8, 16, 24 or 32 bits, or floating point.

    Args:
        root: the folder.
        split: which classes are for training, validation and test.
        table: a CSV file, from `root`. None: there is a folder for each class.
        folder: with the files that the table names, from `root`.
        file_column, class_column: of the table.
        **kwargs: of `AudioFiles`.
    """

    def __init__(
        self,
        root: str,
        split: ClassSplit = ClassSplit(),  # noqa: B008 - never mutated
        table: str | None = None,
        folder: str = "audio",
        file_column: str = "filename",
        class_column: str = "category",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.class_split = Path(root), split
        self.table = None if table is None else self.root / table
        self.folder, self.file_column, self.class_column = self.root / folder, file_column, class_column
        check_split(split)

    def load_source(self, split: Split) -> ClassBank:
        check_any(self.groups[split], split, self.class_split, self.root)
        return super().load_source(split)

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        if self.table is not None:
            return self.listed
        names = [
            name for of_split in find_classes(self.root, self.class_split, self.kind).values() for name in of_split
        ]
        return {name: example_files(self.root / name, self.kind) for name in names}

    @cached_property
    def groups(self) -> dict[Split, dict[str, list[str]]]:
        if self.table is None:
            classes = find_classes(self.root, self.class_split, self.kind)
        else:
            classes = split_names(sorted(self.listed), self.class_split, self.table)
            if not self.class_split.fractions:
                check_listed(classes, self.listed, self.table)
        return {split: {Path(name).name: [name] for name in names} for split, names in classes.items()}

    @cached_property
    def listed(self) -> dict[str, list[Path]]:
        """The files of each class of the table, in its order."""
        assert self.table is not None
        classes = defaultdict[str, list[Path]](list)
        columns = [self.file_column, self.class_column]
        remedy = "Name them with --data.file_column and --data.class_column"
        with open_rows(self.table) as rows:
            for line, row in rows:
                require_columns(self.table, line, row, columns, remedy)
                file, name = (str(row[column] or "") for column in columns)
                classes[name].append(self.folder / file)
        lost = [path for paths in classes.values() for path in paths if not path.is_file()]
        if lost or not classes:
            raise DataError(
                f"{self.table} names {len(lost)} files that are not in {self.folder}, {lost[0].name} is the first; "
                "--data.folder must be where they are."
                if lost
                else f"{self.table} has no rows."
            )
        return dict(classes)
