"""VoiceMixtures: chorales played by drawn instruments, the mixture and each voice by itself."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys, uniform
from lightning_meta.datamodules.audio.chorales import STEPS_PER_CHORD, Score, chorales_of_bach, draw_chorale
from lightning_meta.datamodules.audio.midi import Note, passage_of
from lightning_meta.datamodules.audio.synthesis import Timbre, Tones, draw_timbre, play
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import STREAM, TaskSource, for_each_split
from lightning_meta.errors import ConfigError, require_at_least

log = logging.getLogger(__name__)

BAND = 0x43484F52  # the seed of all pieces: the data set is the same in every run, whatever the seed of episodes
PIECES = (240, 24, 64)  # for training, validation and test
INSTRUMENTS: dict[Split, int] = {"train": 60, "val": 20, "test": 20}
VOICES = 4
CHORD = 0.6  # seconds
LEVEL = 0.1  # root mean square of a voice, before it is made louder or softer
LOUDER = 3.0  # decibels, at most, or softer
RANGE = 2**15 - 1  # of whole numbers that samples are kept as
AT_ONCE = 256  # tones, so that memory suffices for long pieces


@dataclass(frozen=True)
class VoiceBank(TaskSource):
    """Pieces cut into segments. An episode is a piece, some segments of it to learn from and others to take apart.

    Attributes:
        voices: samples `(pieces, segments, 4, L)` int16.
    """

    voices: Tensor

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a task is an ensemble, whose voices are targets: n_way must be 1, not {shape.n_way}.")
        needed, segments = shape.k_shot + shape.n_query, self.voices.shape[1]
        if needed > segments:
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} segments are needed of every piece, which has "
                f"{segments}; lower one of them, or raise data.segments."
            )

    def draw(self, keys: Keys, shape: EpisodeShape) -> Tensor:
        """Which piece and which of its segments, `(T, 1 + K + Q)`."""
        piece_key, segment_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        piece_T1 = choose(piece_key, len(self.voices), 1)
        segments_TM = choose(segment_key, self.voices.shape[1], shape.k_shot + shape.n_query)
        return torch.from_numpy(np.concatenate([piece_T1, segments_TM], 1)).to(self.voices.device)

    def make(self, drawn: Tensor, shape: EpisodeShape) -> Episode:
        """Mixtures `(T, K, L)` and `(T, Q, L)` with their voices `(T, K, 4, L)` and `(T, Q, 4, L)`."""
        y_TMVL = self.voices[drawn[:, :1], drawn[:, 1:]].float() / RANGE
        support, query = (Batch(y.sum(2), y) for y in (y_TMVL[:, : shape.k_shot], y_TMVL[:, shape.k_shot :]))
        return Episode(support, query)

    def to(self, device: torch.device) -> "VoiceBank":
        return replace(self, voices=self.voices.to(device))


class VoiceMixtures(EpisodicDataModule):
    """Mixtures of four voices, to be taken apart: pieces of music for soprano, alto, tenor and bass, drawn and played.

    A task is an ensemble and its piece: the support set are `k_shot` segments of it, mixture and voices, the query set
    `n_query` others. No piece is in two splits. They are played when a split is loaded.

    Args:
        instruments: `drawn`: every piece has an ensemble of its own, and no instrument is in two splits. `fixed`: four
            instruments play everything.
        scores: `drawn` by rule, or `jsb`: chorales of Bach from `<root>/jsb_chorales/`, the split of its file.
        pieces: how many are drawn for training, validation and test.
        seconds: of a segment.
        segments: of a piece.
        sample_rate: samples in a second.
        root: folder of data.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        instruments: Literal["drawn", "fixed"] = "drawn",
        scores: Literal["drawn", "jsb"] = "drawn",
        pieces: Sequence[int] = PIECES,
        seconds: float = 2.0,
        segments: int = 4,
        sample_rate: int = 8000,
        root: str = "data",
        n_way: int = 1,
        k_shot: int = 1,
        n_query: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, segments=segments)
        require_at_least(4000, sample_rate=sample_rate)  # the soprano has partials up to half of it
        if seconds < CHORD:
            raise ConfigError(f"seconds={seconds:g} is shorter than a chord of {CHORD} s; raise it.")
        self.count = for_each_split(pieces=pieces)
        self.instruments, self.scores, self.root = instruments, scores, Path(root)
        self.sample_rate, self.segments, self.length = sample_rate, segments, round(seconds * sample_rate)

    def load_source(self, split: Split) -> VoiceBank:
        pieces = self.pieces(split)
        log.info("Playing %d pieces of %d segments ...", len(pieces), self.segments)
        return VoiceBank(torch.stack([self.played(score, split, number) for number, score in enumerate(pieces)]))

    def pieces(self, split: Split) -> list[Score]:
        """The scores of a split."""
        if self.scores == "jsb":
            return self.of_bach(split)
        keys = episode_keys(BAND, STREAM[split], range(self.count[split]))
        return [draw_chorale(key, -(-self.steps // STEPS_PER_CHORD)) for key in keys]

    def of_bach(self, split: Split) -> list[Score]:
        whole = chorales_of_bach(self.root, split)
        return [np.resize(score, (self.steps, VOICES)) for score in whole]  # short ones begin anew

    @property
    def steps(self) -> int:
        """Of a score, as many as are heard."""
        return -(-self.segments * self.length * STEPS_PER_CHORD // round(CHORD * self.sample_rate))

    def played(self, score: Score, split: Split, number: int) -> Tensor:
        """The segments of a piece `(segments, 4, length)` int16."""
        of_band, of_level, of_playing = subkeys(episode_keys(BAND, len(STREAM) + STREAM[split], [number])[0], range(3))
        louder_V = 10 ** (uniform(of_level, VOICES, -LOUDER, LOUDER) / 20)
        keys_V = subkeys(of_playing, range(VOICES))
        samples = self.segments * self.length
        voices, notes = [], passage_of(score).voices
        for voice, timbre in enumerate(self.ensemble(of_band, split)):
            sound_L = sung(notes[voice], timbre, keys_V[voice], self.sample_rate, samples)
            level = sound_L.square().mean().sqrt().clamp_min(1e-8)
            voices.append(sound_L * float(LEVEL * louder_V[voice]) / level)
        whole_VL = (torch.stack(voices).clamp(-1, 1) * RANGE).round().to(torch.int16)
        return whole_VL.unflatten(1, (self.segments, self.length)).movedim(1, 0).contiguous()

    def ensemble(self, key: Keys, split: Split) -> list[Timbre]:
        """The instruments of a piece, all different."""
        if self.instruments == "fixed":
            numbers = np.arange(VOICES)
        else:
            before = sum(INSTRUMENTS[name] for name in list(INSTRUMENTS)[: STREAM[split]])
            numbers = before + choose(key, INSTRUMENTS[split], VOICES)
        return [draw_timbre(one) for one in episode_keys(BAND, 2 * len(STREAM), numbers)]

    def describe(self, split: Split) -> str:
        shape = self.shapes[split]
        seconds = self.length / self.sample_rate
        return (
            f"{VOICES} voices, {shape.k_shot}-shot, {shape.n_query} query mixtures of {seconds:g} s at "
            f"{self.sample_rate} Hz, {self.instruments} instruments, {self.scores} scores"
        )


def sung(
    notes: Sequence[Note],
    timbre: Timbre,
    key: Keys,
    sample_rate: int,
    samples: int,
    step: float = CHORD / STEPS_PER_CHORD,
    steps_per_chord: int = STEPS_PER_CHORD,
) -> Tensor:
    """What a voice plays `(samples,)`: a tone for each note, and anew with each chord. A step takes so many seconds."""
    struck = []
    for begin, end, pitch in notes:
        cuts = [begin, *range((begin // steps_per_chord + 1) * steps_per_chord, end, steps_per_chord), end]
        struck += [(first, after - first, pitch) for first, after in pairwise(cuts)]
    begin_E, steps_E, pitch_E = np.array(struck, dtype=np.int64).reshape(-1, 3).T
    hertz_E, keys_E = 440 * 2 ** ((pitch_E - 69) / 12), subkeys(key, range(len(struck)))
    onset_E, level_E = np.zeros_like(hertz_E), np.ones_like(hertz_E)
    window = round(step * steps_per_chord * sample_rate)
    whole = torch.zeros(samples + window)
    for first in range(0, len(struck), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        tones = Tones(hertz_E[part], onset_E[part], steps_E[part] * step, level_E[part])
        sounds = play(timbre, tones, keys_E[part], sample_rate, window)
        places = np.round(begin_E[part] * step * sample_rate).astype(int).tolist()
        for sound, place in zip(sounds, places, strict=True):
            if place < samples:
                whole[place : place + window] += sound
    return whole[:samples]
