"""Classes of sounds, seen as log-mel pictures, and those whose sounds are files."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.sound import LogMels
from lightning_meta.datamodules.audio.wav import Sound, clip_of, read_wav
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.files import SOUNDS
from lightning_meta.datamodules.images.image_cache import read_cache, write_cache
from lightning_meta.errors import ConfigError, DataError, require_at_least

log = logging.getLogger(__name__)

SMALL_SOUNDS = Path("data/small_sounds")  # in the folder that training is started in, as runs/ is
RECIPE = 1  # to be raised whenever the same file makes another picture
SMALLEST = 8  # mel bands


class AudioClasses(ClassificationDataModule):
    """Sounds as pictures `1 x size x size` of their log-mel spectrum (see `core/sound.py`), for any backbone of images.

    A picture is of the first `seconds` of a sound and does not depend on its loudness.

    Args:
        sample_rate: to which sounds are resampled. Nothing above half of it is heard.
        seconds: how much of a sound is heard; shorter ones are followed by silence.
        size: of the pictures, in mel bands and in steps of time. The backbone's `image_size` must be the same.
        **kwargs: of `ClassificationDataModule`.
    """

    kind = SOUNDS

    def __init__(self, sample_rate: int = 8000, seconds: float = 1.0, size: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_at_least(1, sample_rate=sample_rate)
        require_at_least(SMALLEST, size=size)
        if seconds * sample_rate < size:
            raise ConfigError(
                f"seconds={seconds:g} at sample_rate={sample_rate} are {seconds * sample_rate:g} samples, fewer than "
                f"the size={size} steps of time; raise seconds."
            )
        self.picture = LogMels(sample_rate, seconds, size)

    def prepare_image(self, path: Path) -> Tensor:
        return self.picture(clip_of(read_wav(path), self.picture, path)[None])[0]

    def changes(self, paths: Sequence[Path], channels: int) -> list[str]:
        return treatment_of([read_wav(path) for path in paths], self.picture)


class AudioFiles(AudioClasses):
    """Sounds that are files. A data set writes `files` and `groups`.

    The pictures are made once and kept in one file, `data/small_sounds/few_shot_<settings>.pt`; a new one is made when
    a sound is added, removed or changed, or a setting is.

    Args:
        cache: folder for the pictures. None: `data/small_sounds`.
        **kwargs: of `AudioClasses`.
    """

    def __init__(self, cache: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_folder = Path(cache or SMALL_SOUNDS)

    @property
    def files(self) -> Mapping[str, Sequence[Path]]:
        """The files of each group; raises `DataError` where there are none."""
        raise NotImplementedError

    @property
    def groups(self) -> Mapping[Split, Mapping[str, Sequence[str]]]:
        """Of each split, by the names of its classes: which groups a class has."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Make the pictures, unless they exist. Raises `DataError` where sounds cannot be used: all of them at once."""
        for split, classes in self.groups.items():
            if classes:
                log.info("%s: %d classes for %s: %s.", self.name, len(classes), split, ", ".join(classes))
        if self.cache.exists():
            return
        log.info("Reading %d sounds (once) ...", sum(map(len, self.files.values())))
        pictures: dict[str, list[Tensor]] = {group: [] for group in self.files}
        sounds, errors = [], []
        for group, paths in self.files.items():
            for path in paths:
                try:
                    sound = read_wav(path)
                    pictures[group].append(self.picture(clip_of(sound, self.picture, path)[None])[0])
                    sounds.append(sound._replace(samples=sound.samples[:1]))
                except DataError as error:
                    errors.append(str(error))
        if errors:
            raise DataError(" ".join([f"{len(errors)} sounds cannot be used:", *errors] if len(errors) > 1 else errors))
        for line in treatment_of(sounds, self.picture):
            log.info("Sounds %s.", line)
        write_cache(self.cache, {group: torch.stack(made) for group, made in pictures.items()}, option="--data.cache")

    def load_source(self, split: Split) -> ClassBank:
        classes, shape = self.groups[split], self.shapes[split]
        count = {name: sum(len(self.files[group]) for group in groups) for name, groups in classes.items()}
        smallest = min(count, key=count.__getitem__)
        if count[smallest] < shape.k_shot + shape.n_query:
            raise ConfigError(
                f"{split} episodes need {shape.k_shot + shape.n_query} sounds of every class (k_shot={shape.k_shot} + "
                f"n_query={shape.n_query}), but {smallest} has {count[smallest]}; lower k_shot or n_query, add sounds, "
                "or leave the class out."
            )
        members = [group for groups in classes.values() for group in groups]
        pictures = dict(zip(members, read_cache(self.cache, members), strict=True))
        return ClassBank.from_ragged([torch.cat([pictures[group] for group in groups]) for groups in classes.values()])

    def class_names(self, split: Split) -> list[str]:
        return list(self.groups[split])

    @cached_property
    def cache(self) -> Path:
        """The file of pictures. Its name depends on all that decides about them."""
        facts = [f"{RECIPE} {self.picture}"]
        for group, paths in self.files.items():
            for path in paths:
                status = path.stat()
                facts.append(f"{group}/{path.name} {status.st_size} {status.st_mtime_ns}")
        key = hashlib.sha256("\n".join(sorted(facts)).encode(errors="surrogateescape")).hexdigest()[:12]
        return self.cache_folder / f"few_shot_{self.picture.size}x{self.picture.size}_{key}.pt"


def treatment_of(sounds: Sequence[Sound], picture: LogMels) -> list[str]:
    """What is done to sounds so that they can be made into pictures, in a line for each."""
    others = Counter(sound.sample_rate for sound in sounds if sound.sample_rate != picture.sample_rate)
    several = sum(sound.samples.shape[1] > 1 for sound in sounds)
    rates = ", ".join(f"{rate} Hz" for rate in sorted(others))
    lines = {
        f"resampled to {picture.sample_rate} Hz from {rates}: {others.total()} of {len(sounds)}": others,
        f"of several channels, their mean taken: {several} of {len(sounds)}": several,
    }
    return [line for line, happened in lines.items() if happened]
