"""A trained recogniser on recordings of a user's: some with what is said in them, and others to be written down."""

import csv
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.initialize.meta_asr import MetaASR
from lightning_meta.core import Batch
from lightning_meta.core.ctc import BLANK, steps_needed, strings_of
from lightning_meta.core.sound import above_floor
from lightning_meta.datamodules.audio.speech import SpeechDataModule
from lightning_meta.datamodules.audio.wav import read_all
from lightning_meta.datamodules.files import SOUNDS, example_files
from lightning_meta.datamodules.rows import Row
from lightning_meta.errors import DataError

TABLE = "transcripts.csv"
COLUMNS = ("file", "text")


def predict_strings(
    module: MetaASR, data: SpeechDataModule, support: Path, query: Path
) -> tuple[list[Row], list[tuple[str, str]]]:
    """What is said in each file of a folder; and what is to be said of the files.

    Args:
        module: the trained one.
        data: what it was trained on, without data: its frames and symbols are those that the module knows.
        support: with WAV files and `transcripts.csv`, whose columns `file` and `text` say what is said in them.
        query: folder of WAV files.

    Raises:
        DataError: of the files: all of them at once.
    """
    for folder, option in ((support, "--support"), (query, "--query")):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; {option} must be one.")
    texts, asked = read_texts(support, data.symbols), example_files(query, SOUNDS)
    mels = data.mels
    sounds, notes = read_all([*texts, *asked], mels.sample_rate, mels.hop, f"a frame is {mels.step:g} s")
    spectra = {path: above_floor(mels(sound_L[None]))[0] for path, sound_L in sounds.items()}
    y_KL = check_lengths(texts, spectra, data.symbols, module)
    longest = max(data.frames, *map(len, spectra.values()))  # in training silence follows, until all are that long
    frames = {path: F.pad(rows, (0, 0, 0, longest - len(rows))) for path, rows in spectra.items()}
    x_KSF = torch.stack([frames[path] for path in texts])
    with torch.no_grad():
        adapted = module.adapt(Batch(x_KSF, y_KL))
    found = [strings_of(module.predict(adapted, frames[path][None]), data.symbols)[0] for path in asked]
    rows = [{"file": path.name, "text": text} for path, text in zip(asked, found, strict=True)]
    return rows, [
        ("support", f"{len(texts)} recordings, {sum(map(len, texts.values()))} symbols of {data.symbols}"),
        ("query", f"{len(asked)} recordings"),
        *(("sounds", note) for note in notes),
    ]


def read_texts(folder: Path, symbols: str) -> dict[Path, str]:
    """What is said in each recording of a folder, without spaces, by its table. Raises `DataError`."""
    table = folder / TABLE
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table} cannot be read ({error}); it must be a CSV file with the columns {' and '.join(COLUMNS)}: which "
            "recording, and what is said in it."
        ) from error
    if not rows or missing_from(rows[0]):
        missing = f"lacks the column {missing_from(rows[0])}" if rows else "has no rows"
        raise DataError(f"{table} {missing}; it must say what is said in each recording: {', '.join(COLUMNS)}.")
    texts = {folder / row["file"].strip(): "".join(row["text"].split()) for row in rows}
    errors = [f"{path.name} does not exist" for path in texts if not path.is_file()]
    for path, text in texts.items():
        if not text:
            errors.append(f"{path.name} has no text")
        elif strange := ", ".join(sorted({*text} - {*symbols})):
            errors.append(f"{path.name} has {strange} in its text")
    if errors:
        raise DataError(f"{table}: {'; '.join(errors)}. The symbols of the run are {symbols}. Change or remove them.")
    return texts


def missing_from(row: dict[str, str]) -> str:
    return " and ".join(name for name in COLUMNS if name not in row)


def check_lengths(texts: dict[Path, str], frames: dict[Path, Tensor], symbols: str, module: MetaASR) -> Tensor:
    """The texts as numbers of symbols `(K, L)`. Raises `DataError` where recordings are too short for them."""
    y_KL = torch.full((len(texts), max(map(len, texts.values()))), BLANK)
    for row, text in zip(y_KL, texts.values(), strict=True):
        row[: len(text)] = torch.tensor([symbols.index(symbol) + 1 for symbol in text])
    errors = []
    for (path, text), needed in zip(texts.items(), steps_needed(y_KL).tolist(), strict=True):
        steps = module.backbone.steps(len(frames[path]))
        if steps < needed:
            errors.append(f"{path} has {steps} steps of time, but its text {text} takes {needed}.")
    if errors:
        raise DataError(" ".join([*errors, "Give longer recordings, or remove them."]))
    return y_KL
