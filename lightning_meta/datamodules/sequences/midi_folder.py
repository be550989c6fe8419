"""A folder of MIDI files as tasks: each file is a piece, of which some is learned from and the rest predicted."""

import hashlib
import logging
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.audio.midi import STEPS_PER_QUARTER, Passage
from lightning_meta.datamodules.class_split import (
    SPLITS,
    ClassSplit,
    check_any,
    check_listed,
    check_split,
    shortened,
    split_names,
)
from lightning_meta.datamodules.files import MIDI, files_below
from lightning_meta.datamodules.images.image_cache import read_cache, write_cache
from lightning_meta.datamodules.rows import open_rows, require_columns
from lightning_meta.datamodules.sequences.chunks import ChunkBank
from lightning_meta.datamodules.sequences.midi_events import (
    FIRST_PITCH,
    IDS_PER_PITCH,
    PITCHES,
    UnusableFileError,
    on_grid,
    passage_of,
    read_ticks,
    tokens_of,
)
from lightning_meta.datamodules.sequences.music import MusicDataModule
from lightning_meta.errors import ConfigError, DataError, require_at_least
from lightning_meta.extras import need

log = logging.getLogger(__name__)

TOKENS = Path("data/midi_tokens")  # in the folder that training is started in, as runs/ is
RECIPE = 1  # to be raised whenever the same file makes other tokens
SPLIT_OF: dict[str, Split] = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


class MidiFolder(MusicDataModule):
    """Pieces of your own: the MIDI files of a folder and of the folders within it, `*.mid` and `*.midi`.

    A task is a piece: chunks to learn from, then chunks to predict. Its notes are tokens on a grid, see `midi_events`:
    any number at once, without drums. Tempo, loudness, instruments and pedals are not kept. The first of these that
    there is says which pieces are for training, validation and test; no file is in two of them:

    - `table`, a CSV file with a column of files and one of splits, as MAESTRO has;
    - folders `train`, `val` (or `validation`) and `test` in `root`;
    - `split`, by fractions and a seed, or by lists of files.

    Reading needs mido. The tokens are made once and kept in one file, `data/midi_tokens/<key>.pt`; a new one is made
    when a file is added, removed or changed, or a setting is. Of files with the same notes the first is kept.

    Args:
        root: the folder.
        split: by `fractions`, or by lists of files with paths from `root`.
        table: a CSV file, from `root`. None: there is none.
        file_column, split_column: of the table.
        steps_per_quarter: of the grid: 4 are sixteenth notes.
        lowest: the first pitch that has ids, as MIDI counts: 60 is middle C.
        skip_unusable: leave out files that cannot be used, in place of an error that names them.
        cache: folder for the tokens. None: `data/midi_tokens`.
        n_way: must be 1.
        k_shot, n_query: chunks to learn from, and chunks after them to predict. Shorter pieces are left out; the log
            says how many.
        vocabulary: ids: padding, 16 of time, and two for each pitch from `lowest` on. On the command line the backbone
            follows it.
        length: tokens of a chunk. On the command line the backbone follows it.
        transpose: by -5 to +6 semitones, drawn for each episode, so that nothing but the piece says in which key it is.
        **kwargs: of `EpisodicDataModule`.
    """

    voices = ("notes",)
    first_pitch = FIRST_PITCH
    ids_per_semitone = IDS_PER_PITCH
    seconds = 0.5  # MIDI's tempo where a file says none

    def __init__(
        self,
        root: str,
        split: ClassSplit = ClassSplit(),  # noqa: B008 - never mutated
        table: str | None = None,
        file_column: str = "midi_filename",
        split_column: str = "split",
        steps_per_quarter: int = STEPS_PER_QUARTER,
        lowest: int = 0,
        skip_unusable: bool = False,
        cache: str | None = None,
        n_way: int = 1,
        k_shot: int = 8,
        n_query: int = 4,
        vocabulary: int = FIRST_PITCH + IDS_PER_PITCH * PITCHES,
        length: int = 32,
        transpose: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, length, transpose, **kwargs)
        require_at_least(1, steps_per_quarter=steps_per_quarter)
        require_at_least(0, lowest=lowest)
        check_split(split)
        self.root, self.class_split, self.skip_unusable = Path(root), split, skip_unusable
        self.table = None if table is None else self.root / table
        self.file_column, self.split_column = file_column, split_column
        self.steps_per_quarter, self.lowest = steps_per_quarter, lowest
        self.cache_folder = Path(cache or TOKENS)
        pitches, odd = divmod(vocabulary - FIRST_PITCH, IDS_PER_PITCH)
        if odd or pitches < 1 or lowest + pitches > PITCHES:
            raise ConfigError(
                f"vocabulary={vocabulary} must be {FIRST_PITCH} and two ids for each pitch, which are {lowest} "
                f"(data.lowest) to at most {PITCHES - 1}: {FIRST_PITCH + IDS_PER_PITCH} to "
                f"{FIRST_PITCH + IDS_PER_PITCH * (PITCHES - lowest)}."
            )
        down, up = self.margins
        self.range = range(lowest + down, lowest + pitches - up)

    @cached_property
    def names(self) -> dict[Split, list[str]]:
        """The files of each split, by their paths from `root`."""
        if not self.root.is_dir():
            raise DataError(f"{self.root} is no folder; --data.root must be one, with MIDI files in it.")
        files = [path.relative_to(self.root).as_posix() for path in files_below(self.root, MIDI)]
        if not files:
            raise DataError(f"{self.root} has no MIDI files ({', '.join(MIDI.suffixes)}). Put some there.")
        if self.table is not None:
            found = self._listed(self.table)
        else:
            by_folder = self._by_folder(files)
            found = by_folder or split_names(files, self.class_split, self.root, "pieces")
            if by_folder is None and self.class_split.fractions:
                return found
        check_listed(found, set(files), self.root, "a piece", "pieces")
        return found

    def _by_folder(self, files: list[str]) -> dict[Split, list[str]] | None:
        """What folders for the splits say; None: there are none, or only one, which may have its name by chance."""
        of = {folder: SPLIT_OF[folder] for folder in SPLIT_OF if (self.root / folder).is_dir()}
        if len(of) < 2:
            return None
        if len(of) > len(SPLITS) or {*of.values()} != {*SPLITS}:
            raise DataError(
                f"{self.root} has folders {' and '.join(of)}, but splits are to be three: train, val and test. Rename "
                "or add folders, or say with --data.table which file is in which split."
            )
        log.info("The folders %s of %s say which files are in which split.", ", ".join(of), self.root)
        found: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for name in files:
            if (folder := name.partition("/")[0]) in of:
                found[of[folder]].append(name)
        return found

    @property
    def all_names(self) -> list[str]:
        """In an order that does not depend on the split."""
        return sorted(name for of_split in self.names.values() for name in of_split)

    def _listed(self, table: Path) -> dict[Split, list[str]]:
        """What the table says."""
        found: dict[Split, list[str]] = {split: [] for split in SPLITS}
        columns = [self.file_column, self.split_column]
        remedy = "Name them with --data.file_column and --data.split_column"
        with open_rows(table) as rows:
            for line, row in rows:
                require_columns(table, line, row, columns, remedy)
                file, split = (str(row[column] or "") for column in columns)
                if split not in SPLIT_OF:
                    known = ", ".join(SPLIT_OF)
                    raise ValueError(f"line {line} says that {file} is for {split!r}; it must be one of {known}")
                found[SPLIT_OF[split]].append(Path(file).as_posix())
        return found

    def prepare_data(self) -> None:
        """Make the tokens, unless they exist. Raises `DataError` where files cannot be used: all of them at once."""
        if self.cache.exists():
            return
        need("mido", "MidiFolder")
        names = self.all_names
        log.info("Reading %d MIDI files of %s (once) ...", len(names), self.root)
        tokens, unusable, first, copies = dict[str, Tensor](), defaultdict[str, list[str]](list), dict[bytes, str](), []
        for name in names:
            tokens[name] = torch.zeros(0, dtype=torch.int16)  # of a file that is left out
            try:
                found = self.read(self.root / name)
            except UnusableFileError as error:
                unusable[error.kind].append(f"{name} ({error.detail})" if error.detail else name)
                continue
            notes = hashlib.sha256(found.numpy().tobytes()).digest()
            if first.setdefault(notes, name) == name:
                tokens[name] = found
            else:
                copies.append(f"{name} of {first[notes]}")
        self._report(len(names), unusable, usable=bool(first))
        if copies:
            log.warning("%d files are left out as copies of others: %s.", len(copies), shortened(copies))
        write_cache(self.cache, tokens, option="--data.cache")

    def read(self, path: Path) -> Tensor:
        """The tokens of a file, int16. Raises `UnusableFileError`."""
        notes = on_grid(read_ticks(path), self.steps_per_quarter)
        low, high = min(note.pitch for note in notes), max(note.pitch for note in notes)
        if low < self.range.start or high >= self.range.stop:
            kind = f"with pitches outside {self.range.start} to {self.range.stop - 1}"
            kind += f", which vocabulary={self.vocabulary} has ids for{' when transposed' if self.transpose else ''}"
            kind += " (change --data.vocabulary and --data.lowest)"
            raise UnusableFileError(kind, f"{low} to {high}")
        return tokens_of(notes, self.lowest).to(torch.int16)

    def _report(self, files: int, unusable: dict[str, list[str]], usable: bool) -> None:
        count = sum(map(len, unusable.values()))
        told = f"{count} of {files} files of {self.root} cannot be used. "
        if count and not (self.skip_unusable and usable):
            told += " ".join(f"{len(names)} {kind}: {', '.join(names)}." for kind, names in unusable.items())
            raise DataError(f"{told} Mend or remove them, or leave them out: --data.skip_unusable true.")
        if count:
            told += " ".join(f"{len(names)} {kind}: {shortened(names)}." for kind, names in unusable.items())
            log.warning("%s They are left out.", told)

    @cached_property
    def cache(self) -> Path:
        """The file of tokens. Its name depends on all that decides about them."""
        facts = [f"{RECIPE} {self.steps_per_quarter} {self.lowest} {self.range} {self.vocabulary} {self.skip_unusable}"]
        for name in self.all_names:
            status = (self.root / name).stat()
            facts.append(f"{name} {status.st_size} {status.st_mtime_ns}")
        key = hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()[:12]
        return self.cache_folder / f"{key}.pt"

    def load_source(self, split: Split) -> ChunkBank:
        check_any(self.names[split], split, self.class_split, self.root, "pieces")
        return super().load_source(split)

    def sequences(self, split: Split) -> list[Tensor]:
        return [tokens.long() for tokens in read_cache(self.cache, self.names[split], "files") if len(tokens)]

    def passage(self, tokens: Tensor) -> Passage:
        return passage_of(tokens, self.lowest)
