"""Timbres: tones of instruments that are drawn by key and played on the spot. Nothing is downloaded."""

import logging
from typing import Any

import numpy as np
import torch

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import episode_keys, subkeys
from lightning_meta.datamodules.audio.audio_classes import AudioClasses
from lightning_meta.datamodules.audio.synthesis import draw_timbre, draw_tones, play
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import require_at_least

log = logging.getLogger(__name__)

INSTRUMENTS: dict[Split, int] = {"train": 60, "val": 20, "test": 20}
TONES = 20  # of each
BAND = 0x50554E44  # the seed of all instruments: the data set is the same in every run, whatever the seed of episodes


class Timbres(AudioClasses):
    """100 classes of 20 tones, a class being an instrument: 60 for training, 20 for validation and 20 for test.

    What is an instrument's, and what differs between its tones, is in `synthesis.py`. Tones differ in pitch by up to
    two octaves, and that is most of a spectrum. They are played when a split is loaded, in some seconds.

    Args:
        tones: how many of each instrument there are.
        **kwargs: of `AudioClasses`.
    """

    def __init__(self, tones: int = TONES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_at_least(1, tones=tones)
        self.tones = tones

    def load_source(self, split: Split) -> ClassBank:
        numbers = self.numbers(split)
        log.info("Playing %d tones of %d instruments ...", len(numbers) * self.tones, len(numbers))
        return ClassBank.from_classes(torch.stack([self.picture(self.sounds(number)) for number in numbers]))

    def numbers(self, split: Split) -> range:
        """Of the instruments of a split."""
        before = 0
        for name, count in INSTRUMENTS.items():
            if name == split:
                break
            before += count
        return range(before, before + INSTRUMENTS[split])

    def sounds(self, number: int) -> torch.Tensor:
        """The tones of an instrument `(tones, length)`."""
        of_instrument, of_tones = np.moveaxis(subkeys(episode_keys(BAND, 0, [number])[0], range(2)), -1, 0)
        tones, playing = np.moveaxis(subkeys(subkeys(of_tones, np.arange(self.tones)), range(2)), -1, 0)
        timbre = draw_timbre(of_instrument)
        return play(timbre, draw_tones(tones), playing, self.picture.sample_rate, self.picture.length)

    def class_names(self, split: Split) -> list[str]:
        return [f"instrument {number}" for number in self.numbers(split)]
