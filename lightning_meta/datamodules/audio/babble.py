"""Babble: words of no language, said by speakers that do not exist. Nothing is downloaded.

A word is a burst of noise and a glide from one vowel to another. A vowel is two formants, bands in which the partials
of a voice are loud. A speaker has a pitch, a vocal tract, which moves all formants, and an accent, which moves those of
each word: so the same word sounds unlike from speaker to speaker, and a few strings tell how.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, episode_keys, normal, subkeys, uniform
from lightning_meta.datamodules.audio.speech import Recordings, SpeechDataModule
from lightning_meta.datamodules.audio.synthesis import AUDIBLE, between
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.errors import ConfigError, require_at_least

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
BAND = 0x42414242  # the seed of all speakers: the data set is the same in every run, whatever the seed of episodes
WORDS = len(STREAM)  # stream of random numbers of the words, beside those of the speakers of a split
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FORMANTS = ((250.0, 850.0), (900.0, 2600.0))  # Hz: from which to which a vowel's first and second may be
PITCH = (90.0, 240.0)  # Hz
TRACT = 0.2  # octaves, at most, by which a speaker's formants are higher or lower
WIDTH = 120.0  # Hz, of a formant
BURST = 0.08  # seconds of noise, with which a word begins
LENGTH = (0.22, 0.42)  # seconds of a word
GRAIN = 16  # samples between which the strength of a partial goes in a straight line


class Speaker(NamedTuple):
    """A voice.

    Attributes:
        pitch: Hz.
        tempo: seconds of a word, but for each take's own.
        vowels: Hz, `(words, 2, 2)`: the formants with which each word begins and ends.
        burst: Hz, `(words,)`: around which the noise is.
    """

    pitch: float
    tempo: float
    vowels: Floats
    burst: Floats


def draw_speakers(keys: Keys, words: int, accent: float) -> list[Speaker]:
    """A speaker for each key, who says the words with an accent of so many octaves."""
    of_words = uniform(episode_keys(BAND, WORDS, range(words)), 5)
    low, high = np.array(FORMANTS).T
    vowels_W22 = low * (high / low) ** of_words[:, :4].reshape(-1, 2, 2)
    burst_W = between(800.0, 3200.0, of_words[:, 4])
    speakers = []
    for key in keys:
        of_voice, of_accent = subkeys(key, range(2))
        pitch, tempo, tract = uniform(of_voice, 3).tolist()
        moved = 2.0 ** (TRACT * (2 * tract - 1) + accent * normal(of_accent, 5 * words).reshape(words, 5))
        speakers.append(
            Speaker(
                between(*PITCH, pitch),
                between(*LENGTH, tempo),
                vowels_W22 * moved[:, :4].reshape(-1, 2, 2),
                burst_W * moved[:, 4],
            )
        )
    return speakers


def say(speaker: Speaker, word: int, keys: Keys, sample_rate: int) -> list[Tensor]:
    """Takes of a word `(samples,)`, one for each key `(E,)`: they differ in length, pitch and a little in formants."""
    jitter_key, noise_key, phase_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
    jitter_E7 = normal(jitter_key, 7)
    seconds_E = speaker.tempo * 2 ** (0.15 * jitter_E7[:, 0]).clip(-0.4, 0.4)
    longest = -(-round(float(seconds_E.max()) * sample_rate) // GRAIN) * GRAIN
    # Strengths of partials, some of the time.
    coarse_G = np.arange(longest // GRAIN + 1) * GRAIN / sample_rate
    along_EG = np.clip(coarse_G / seconds_E[:, None], 0, 1)
    glide_EG = 0.5 - 0.5 * np.cos(np.pi * along_EG)
    begin_2, end_2 = np.log2(speaker.vowels[word])
    formants_EG2 = 2 ** (begin_2 + glide_EG[..., None] * (end_2 - begin_2) + 0.04 * jitter_E7[:, None, 1:3])
    pitch_E = speaker.pitch * 2 ** (0.08 * jitter_E7[:, 3])
    partials_P = np.arange(1, int(AUDIBLE * sample_rate / 2 / pitch_E.max()) + 1)
    hertz_EP = pitch_E[:, None] * partials_P
    away_EGP2 = (hertz_EP[:, None, :, None] - formants_EG2[:, :, None]) / WIDTH
    strength_EGP = (np.exp(-0.5 * away_EGP2**2) * np.array([1.0, 0.6])).sum(-1)
    burst_EG = np.exp(-0.5 * (coarse_G / BURST) ** 2) * 2 ** (0.2 * jitter_E7[:, 4:5])
    voiced_EG = (1 - np.exp(-0.5 * (coarse_G / BURST) ** 2)) * np.clip((seconds_E[:, None] - coarse_G) / 0.05, 0, 1)
    strength = torch.from_numpy((strength_EGP * voiced_EG[..., None]).transpose(0, 2, 1)).float()
    time_L = torch.arange(longest) / sample_rate
    phase_EP = torch.from_numpy(uniform(phase_key, len(partials_P))).float()
    cycles_EPL = torch.from_numpy(hertz_EP).float()[..., None] * time_L + phase_EP[..., None]
    strength_EPL = F.interpolate(strength, longest + 1, mode="linear", align_corners=True)[..., :-1]
    sound_EL = (strength_EPL * torch.sin(2 * torch.pi * (cycles_EPL - cycles_EPL.round()))).sum(1)
    noise_EL = torch.from_numpy(normal(noise_key, longest)).float()
    centre = 2 * torch.pi * float(speaker.burst[word]) * time_L
    burst = torch.from_numpy(burst_EG).float()
    burst_EL = F.interpolate(burst[:, None], longest + 1, mode="linear", align_corners=True)[:, 0, :-1]
    slow_EL = F.avg_pool1d(noise_EL[:, None], 9, 1, 4, count_include_pad=True)[:, 0]  # noise of a narrow band
    sound_EL = sound_EL + 3 * burst_EL * slow_EL * torch.cos(centre) + 0.01 * noise_EL
    return [
        sound[: round(seconds * sample_rate)] / sound.abs().max()
        for sound, seconds in zip(sound_EL, seconds_E.tolist(), strict=True)
    ]


class Babble(SpeechDataModule):
    """Strings of made-up words by drawn speakers, none of whom is in two splits.

    Args:
        vocabulary: words, and the blank.
        accent: octaves by which a speaker's formants of a word differ from others'. At 0 all speakers say the words in
            the same way, but for pitch, tempo and vocal tract.
        train_speakers, val_speakers, test_speakers: how many each split has.
        takes: recordings of a word by a speaker.
        **kwargs: of `SpeechDataModule`.
    """

    def __init__(
        self,
        vocabulary: int = 9,
        accent: float = 0.25,
        train_speakers: int = 60,
        val_speakers: int = 10,
        test_speakers: int = 20,
        takes: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary=vocabulary, **kwargs)
        require_at_least(1, train_speakers=train_speakers, val_speakers=val_speakers, test_speakers=test_speakers)
        require_at_least(2, takes=takes)
        require_at_least(8000, sample_rate=self.mels.sample_rate)  # words have formants and noise up to half of it
        if accent < 0:
            raise ConfigError(f"accent={accent:g} must be at least 0 octaves.")
        if vocabulary - 1 > len(LETTERS):
            raise ConfigError(f"vocabulary={vocabulary} must be at most {len(LETTERS) + 1}: a letter for each word.")
        self.accent, self.takes = accent, takes
        self.speakers: dict[Split, int] = {"train": train_speakers, "val": val_speakers, "test": test_speakers}

    @property
    def symbols(self) -> str:
        return LETTERS[: self.vocabulary - 1]

    def recordings(self, split: Split) -> Recordings:
        words = range(self.vocabulary - 1)
        log.info("%d speakers say %d words, %d times ...", self.speakers[split], len(words), self.takes)
        keys_V = episode_keys(BAND, STREAM[split], range(self.speakers[split]))
        voices = draw_speakers(subkeys(keys_V, [0])[:, 0], len(words), self.accent)
        keys_VWE = subkeys(subkeys(keys_V, [1 + word for word in words]), range(self.takes))
        return [
            [say(voice, word, keys_E, self.mels.sample_rate) for word, keys_E in zip(words, keys_WE, strict=True)]
            for voice, keys_WE in zip(voices, keys_VWE, strict=True)
        ]

    def count_speakers(self, split: Split) -> int:
        return self.speakers[split]
