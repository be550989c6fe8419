"""Strings of digits, put together from those of the Free Spoken Digit Dataset of Jackson and others."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.sound import resample
from lightning_meta.datamodules.audio.speech import Recordings, SpeechDataModule
from lightning_meta.datamodules.audio.spoken_digits import DIGITS, recorded_in
from lightning_meta.datamodules.audio.wav import read_all
from lightning_meta.errors import ConfigError, DataError, require_at_least

log = logging.getLogger(__name__)

WORDS = len(DIGITS) + 1  # with the blank


class SpokenStrings(SpeechDataModule):
    """Strings of spoken digits, of six speakers: those of the test are none of the others.

    There are no speakers to spare for validation: it has recordings of those of training that training does not have.

    Args:
        root: folder for data, with `spoken_digits/recordings/<digit>_<speaker>_<number>.wav`.
        test_speakers: who is heard in the test alone.
        val_recordings: of each digit by a speaker, the first of which are for validation.
        speeds: at which training hears each speaker, a speaker each; pitch and formants follow. Ko, Peddinti, Povey,
            Khudanpur: "Audio Augmentation for Speech Recognition" (2015).
        vocabulary: digits from zero on, and the blank.
        **kwargs: of `SpeechDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        test_speakers: Sequence[str] = ("theo", "yweweler"),
        val_recordings: int = 5,
        speeds: Sequence[float] = (0.9, 1.0, 1.1),
        vocabulary: int = WORDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary=vocabulary, **kwargs)
        require_at_least(2, val_recordings=val_recordings)
        if vocabulary > WORDS:
            raise ConfigError(f"vocabulary={vocabulary} must be at most {WORDS}: ten digits, and the blank.")
        if not speeds or not all(0.5 <= speed <= 2 for speed in speeds):
            raise ConfigError(f"speeds={[*speeds]} must be some numbers from 0.5 to 2; [1.0] changes nothing.")
        self.folder = Path(root) / "spoken_digits" / "recordings"
        self.test_speakers, self.val_recordings, self.speeds = tuple(test_speakers), val_recordings, tuple(speeds)

    @property
    def symbols(self) -> str:
        return "0123456789"[: self.vocabulary - 1]

    def prepare_data(self) -> None:
        """Raises `DataError` or `ConfigError` where there are no such recordings."""
        log.info("%s: for training %s; for the test %s.", self.name, *map(", ".join, self.names))

    def recordings(self, split: Split) -> Recordings:
        training, test = self.names
        speeds = self.speeds if split == "train" else (1.0,)
        return [
            [self.of_word(f"{digit} {name}", split, speed) for digit in DIGITS[: self.vocabulary - 1]]
            for name in (test if split == "test" else training)
            for speed in speeds
        ]

    def of_word(self, group: str, split: Split, speed: float) -> list[Tensor]:
        """What a speaker has recorded of a digit, faster by a factor; of training and validation to each its own."""
        paths = sorted(self.files.get(group, ()), key=lambda path: int(path.stem.rpartition("_")[2]))
        first = self.val_recordings
        paths = {"train": paths[first:], "val": paths[:first], "test": paths}[split]
        if len(paths) < 2:
            raise DataError(
                f"{self.folder} has {len(paths)} recordings of {group} for {split}, where two are needed; add some, or "
                f"change data.val_recordings={first} or data.test_speakers."
            )
        return [resample(self.sounds[path], round(1000 * speed), 1000) for path in paths]

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        return recorded_in(self.folder)

    @cached_property
    def sounds(self) -> dict[Path, Tensor]:
        """All recordings, of one channel at the sample rate."""
        sounds, notes = read_all([path for paths in self.files.values() for path in paths], self.mels.sample_rate)
        for note in notes:
            log.info("Recordings are %s.", note)
        return sounds

    @cached_property
    def names(self) -> tuple[list[str], list[str]]:
        """Of the speakers of training and validation, and of the test."""
        everybody = sorted({group.split(" ", 1)[1] for group in self.files})
        strange = {*self.test_speakers} - {*everybody}
        training = [name for name in everybody if name not in self.test_speakers]
        if strange or not training or not self.test_speakers:
            nobody = "training" if not training else "the test"
            reason = f"{', '.join(sorted(strange))} is nobody" if strange else f"nobody is left for {nobody}"
            raise ConfigError(
                f"of the speakers {', '.join(everybody)} in {self.folder}, {reason}; set data.test_speakers."
            )
        return training, list(self.test_speakers)

    def count_speakers(self, split: Split) -> int:
        training, test = self.names
        return {"train": len(training) * len(self.speeds), "val": len(training), "test": len(test)}[split]
