"""Strings of spoken words, put together from recordings of single words: tasks of speech recognition."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.ctc import BLANK
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, subkeys, uniform, whole
from lightning_meta.core.sound import MelFrames, above_floor
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError, DataError, require_at_least

Ints = npt.NDArray[np.int64]
Recordings = Sequence[Sequence[Sequence[Tensor]]]  # by speaker and word: the samples `(n,)` of each


@dataclass(frozen=True)
class Strings:
    """Which strings there are.

    Attributes:
        shortest, longest: words of a string.
        pause: frames before a word, at most.
        support_speakers, query_speakers: whose words a string of the support set, and of the query set, is made of.
    """

    shortest: int
    longest: int
    pause: int
    support_speakers: int
    query_speakers: int


@dataclass(frozen=True)
class StringSource(TaskSource):
    """Draws speakers, and strings of words that they say.

    The recordings of a support set are others than those of its query set. Frames of recordings side by side, with or
    without silence between them, are those of the sound that is put together, because a recording ends in silence.

    Attributes:
        spectra: decibels `(frames, bands)` of all recordings, one after the other.
        first, size: `(recordings,)`, where each begins, and of how many frames it is.
        begin, count: `(speakers, words)`, the first recording, and how many follow it.
        strings: which ones there are.
        frames: of a string, with the silence after it.
    """

    spectra: Tensor
    first: Tensor
    size: Tensor
    begin: Ints
    count: Ints
    strings: Strings
    frames: int

    @classmethod
    def of(cls, recordings: Recordings, mels: MelFrames, strings: Strings, frames: int) -> "StringSource":
        count = np.array([[len(takes) for takes in words] for words in recordings])
        takes = [take for words in recordings for of_word in words for take in of_word]
        size = torch.tensor([-(-len(take) // mels.hop) + 1 for take in takes])
        spectra = [mels(take[None])[0] for take in takes]
        begin = (count.cumsum() - count.ravel()).reshape(count.shape)
        return cls(torch.cat(spectra), size.cumsum(0) - size, size, begin, count, strings, frames)

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(
                f"a task is its speakers, and all have the same words: n_way must be 1, not {shape.n_way}."
            )
        if len(self.count) < self.speakers:
            raise ConfigError(
                f"support_speakers={self.strings.support_speakers} and query_speakers={self.strings.query_speakers} "
                f"need {self.speakers} speakers, but there are {len(self.count)}; lower them, or add speakers."
            )
        if self.count.min() < 2:
            raise DataError(
                "a word is recorded only once by a speaker; two recordings are needed, one for the support set and "
                "another for the query set."
            )

    @property
    def speakers(self) -> int:
        """Of a task."""
        return max(self.strings.support_speakers, self.strings.query_speakers)

    def draw(self, keys: Keys, shape: EpisodeShape) -> tuple[Tensor, Tensor, Tensor]:
        """Which recordings are heard, how many silent frames are before each, and what is said: each `(T, M, L)`."""
        speaker_key, side_key, string_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        speakers_TG, side_T = choose(speaker_key, len(self.count), self.speakers), whole(side_key, 0, 1)
        support, query = shape.k_shot, shape.n_query
        keys_TM = subkeys(string_key, np.arange(support + query))
        length_key, word_key, turn_key, take_key, pause_key = np.moveaxis(subkeys(keys_TM, range(5)), -1, 0)
        longest = self.strings.longest
        length_TM1 = whole(length_key, self.strings.shortest, self.strings.longest)[..., None]
        there_TML = np.arange(longest) < length_TM1
        words_TML = (uniform(word_key, longest) * self.count.shape[1]).astype(np.int64)
        of_query_M = np.arange(support + query) >= support
        heard_M = np.where(of_query_M, self.strings.query_speakers, self.strings.support_speakers)
        turns_TML = self.turns(turn_key, heard_M, length_TM1)
        place_M = np.where(of_query_M, np.arange(support + query) - support, np.arange(support + query))
        who_TML = (place_M[:, None] + turns_TML) % self.speakers
        speaker_TML = np.take_along_axis(speakers_TG[:, None], who_TML, -1)
        half_TM1 = (side_T[:, None] != of_query_M)[..., None].astype(np.int64)  # of takes: of even numbers, or odd
        halves_TML = (self.count[speaker_TML, words_TML] + 1 - half_TM1) // 2
        take_TML = 2 * (uniform(take_key, longest) * halves_TML).astype(np.int64) + half_TM1
        clips_TML = np.where(there_TML, self.begin[speaker_TML, words_TML] + take_TML, -1)
        pauses_TML = (uniform(pause_key, longest) * (self.strings.pause + 1)).astype(np.int64)
        drawn = (clips_TML, np.where(there_TML, pauses_TML, 0), np.where(there_TML, words_TML + 1, BLANK))
        clips, pauses, y = (torch.from_numpy(part).to(self.spectra.device) for part in drawn)
        return clips, pauses, y

    def turns(self, keys_TM: Keys, heard_M: Ints, length_TM1: Ints) -> Ints:
        """Who says each word, `(T, M, L)`: each at random, and another says the last where one would say all."""
        turns_TML = (uniform(keys_TM, self.strings.longest) * heard_M[:, None]).astype(np.int64)
        places_L = np.arange(self.strings.longest)
        alone_TM1 = ((turns_TML == turns_TML[..., :1]) | (places_L >= length_TM1)).all(-1, keepdims=True)
        changed_TML = alone_TM1 & (places_L == length_TM1 - 1)
        return (turns_TML + changed_TML) % heard_M[:, None]

    def make(self, drawn: tuple[Tensor, Tensor, Tensor], shape: EpisodeShape) -> Episode:
        """Strings `(T, K, S, bands)` and `(T, Q, S, bands)` in [0, 1], with the numbers of their words `(T, K, L)`."""
        clips_TML, pauses_TML, y_TML = drawn
        x_TMSF = above_floor(self.spoken(clips_TML, pauses_TML))
        k = shape.k_shot
        return Episode(Batch(x_TMSF[:, :k], y_TML[:, :k]), Batch(x_TMSF[:, k:], y_TML[:, k:]))

    def spoken(self, clips_TML: Tensor, pauses_TML: Tensor) -> Tensor:
        """Decibels `(T, M, S, bands)`, minus infinity in silence."""
        size_TML = torch.where(clips_TML >= 0, self.size[clips_TML], 0)
        ends_TML = (pauses_TML + size_TML).cumsum(-1)
        since_TMLS = torch.arange(self.frames, device=clips_TML.device) - (ends_TML - size_TML)[..., None]
        inside_TMLS = (since_TMLS >= 0) & (since_TMLS < size_TML[..., None])
        rows_TMS = torch.where(inside_TMLS, self.first[clips_TML][..., None] + since_TMLS, 0).sum(-2)
        return torch.where(inside_TMLS.any(-2)[..., None], self.spectra[rows_TMS], -torch.inf)

    def to(self, device: torch.device) -> "StringSource":
        return replace(self, spectra=self.spectra.to(device), first=self.first.to(device), size=self.size.to(device))


class SpeechDataModule(EpisodicDataModule):
    """Strings of words, to be written down. A data set writes `recordings` and `symbols`.

    A task is a speaker, or several: the support set are `k_shot` strings, the query set `n_query` others, of other
    recordings. A string is of some of the task's speakers, who take turns. Where those of the query set have more
    speakers than those of the support set, a task is to know switching from those who do not switch:
    Winata, Cahyawijaya, Lin, Liu, Xu, Fung: "Meta-Transfer Learning for Code-Switched Speech Recognition" (2020),
    arXiv:2004.14228, with speakers for languages.

    Args:
        vocabulary: words, and the blank. On the command line the backbone follows it.
        shortest, longest: words of a string.
        support_speakers, query_speakers: whose words a string is made of; a task has the larger number of speakers.
        pause: seconds of silence before a word, at most.
        seconds: how much of a recording is heard.
        sample_rate: to which sounds are resampled.
        step: seconds from one frame to the next.
        bands: mel bands of a frame. On the command line the backbone follows it.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        vocabulary: int,
        shortest: int = 2,
        longest: int = 5,
        support_speakers: int = 1,
        query_speakers: int = 1,
        pause: float = 0.1,
        seconds: float = 0.6,
        sample_rate: int = 8000,
        step: float = 0.025,
        bands: int = 24,
        n_way: int = 1,
        k_shot: int = 10,
        n_query: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(2, vocabulary=vocabulary)
        require_at_least(1, shortest=shortest, support_speakers=support_speakers, query_speakers=query_speakers)
        require_at_least(1, bands=bands, sample_rate=sample_rate)
        if pause < 0:
            raise ConfigError(f"pause={pause:g} must be at least 0 seconds.")
        speakers = max(support_speakers, query_speakers)
        if longest < shortest:
            raise ConfigError(f"longest={longest} words of a string are fewer than shortest={shortest}; raise it.")
        if shortest < speakers:
            raise ConfigError(
                f"a string of shortest={shortest} words cannot have {speakers} speakers; raise it to {speakers}, or "
                "lower query_speakers or support_speakers."
            )
        if min(support_speakers, query_speakers) not in (1, speakers):
            raise ConfigError(
                f"support_speakers={support_speakers} and query_speakers={query_speakers} must be equal, or one of "
                "them 1: a string has all speakers of its task, or one."
            )
        if round(step * sample_rate) < 1 or seconds < step:
            raise ConfigError(
                f"step={step:g} s must be at least a sample of {sample_rate} Hz, and seconds={seconds:g} a step; raise "
                "them."
            )
        self.vocabulary, self.mels = vocabulary, MelFrames(sample_rate, step, bands)
        self.strings = Strings(shortest, longest, int(pause / step), support_speakers, query_speakers)
        self.samples = round(seconds * sample_rate)
        self.frames = longest * (self.strings.pause + -(-self.samples // self.mels.hop) + 1)

    def recordings(self, split: Split) -> Recordings:
        """The recordings of each word by each speaker of a split. Raises `DataError`."""
        raise NotImplementedError

    @property
    def symbols(self) -> str:
        """A letter for each word."""
        raise NotImplementedError

    def count_speakers(self, split: Split) -> int:
        raise NotImplementedError

    def load_source(self, split: Split) -> StringSource:
        heard = [[[take[: self.samples] for take in takes] for takes in words] for words in self.recordings(split)]
        return StringSource.of(heard, self.mels, self.strings, self.frames)

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {
            "speakers": self.count_speakers(split),
            "support_speakers": self.strings.support_speakers,
            "query_speakers": self.strings.query_speakers,
            "longest": self.strings.longest,
        }

    def describe(self, split: Split) -> str:
        shape, strings = self.shapes[split], self.strings
        return (
            f"{strings.shortest} to {strings.longest} words a string, {shape.k_shot} of {strings.support_speakers} in "
            f"the support set and {shape.n_query} of {strings.query_speakers} in the query set, of "
            f"{self.count_speakers(split)} speakers"
        )
