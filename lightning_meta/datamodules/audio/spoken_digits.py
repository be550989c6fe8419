"""Digits spoken by six people: the Free Spoken Digit Dataset of Jackson and others (github.com/Jakobovski)."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.audio.audio_classes import AudioFiles
from lightning_meta.errors import ConfigError, DataError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OF_SPLIT: dict[Split, Sequence[str]] = {"train": DIGITS[:5], "val": DIGITS[:5], "test": DIGITS[5:]}
NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>.+)_\d+\.wav")
ORIGIN = "Copy recordings/ there from https://github.com/Jakobovski/free-spoken-digit-dataset."


class SpokenDigits(AudioFiles):
    """Ten digits, 50 times by each of six speakers, 8,000 samples a second; five classes in every split.

    Meta-test has the digits five to nine by two speakers, none of whom and none of which was in training: zero to four
    by three others. There are no digits to spare for validation: it has those of training by a speaker of its own.

    Args:
        root: folder for data, with `spoken_digits/recordings/<digit>_<speaker>_<number>.wav`.
        val_speakers, test_speakers: who is heard in validation and in test; all others in training.
        **kwargs: of `AudioFiles`.
    """

    def __init__(
        self,
        root: str = "data",
        val_speakers: Sequence[str] = ("nicolas",),
        test_speakers: Sequence[str] = ("theo", "yweweler"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.recordings = Path(root) / "spoken_digits" / "recordings"
        self.val_speakers, self.test_speakers = tuple(val_speakers), tuple(test_speakers)
        if both := {*val_speakers} & {*test_speakers}:
            raise ConfigError(
                f"{', '.join(sorted(both))} cannot be among val_speakers={[*val_speakers]} and "
                f"test_speakers={[*test_speakers]}."
            )

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """By digit and speaker: `five theo`."""
        return recorded_in(self.recordings)

    @cached_property
    def groups(self) -> dict[Split, dict[str, list[str]]]:
        everybody = sorted({group.split(" ", 1)[1] for group in self.files})
        held_out = (*self.val_speakers, *self.test_speakers)
        speakers: dict[Split, Sequence[str]] = {
            "train": [name for name in everybody if name not in held_out],
            "val": self.val_speakers,
            "test": self.test_speakers,
        }
        if (strange := {*held_out} - {*everybody}) or not all(speakers.values()):
            nobody = ", ".join(split for split, names in speakers.items() if not names)
            reason = f"{', '.join(sorted(strange))} is nobody" if strange else f"nobody is left for {nobody}"
            raise ConfigError(
                f"of the speakers {', '.join(everybody)} in {self.recordings}, {reason}; set data.val_speakers and "
                "data.test_speakers."
            )

        def of(digit: str, names: Sequence[str]) -> list[str]:
            return [group for name in names if (group := f"{digit} {name}") in self.files]

        return {split: {digit: of(digit, speakers[split]) for digit in digits} for split, digits in OF_SPLIT.items()}


def recorded_in(folder: Path) -> dict[str, list[Path]]:
    """The recordings of a folder by digit and speaker: `five theo`. Raises `DataError`."""
    found = defaultdict[str, list[Path]](list)
    for path in sorted(folder.glob("*.wav")):
        name = NAME.fullmatch(path.name)
        if name is None:
            raise DataError(f"{path} is not called <digit>_<speaker>_<number>.wav. Rename or remove it.")
        found[f"{DIGITS[int(name['digit'])]} {name['speaker']}"].append(path)
    if not found:
        raise DataError(f"{folder} has no recordings (*.wav). {ORIGIN}")
    return dict(found)
