"""Chorales: pieces for four voices as tasks, token by token.

A token is what a voice sings in a step, a sixteenth note: soprano, alto, tenor and bass of one step, then of the next.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.audio.chorales import STEPS_PER_CHORD, Score, chorales_of_bach, draw_chorale
from lightning_meta.datamodules.audio.midi import Passage, passage_of
from lightning_meta.datamodules.audio.voice_mixtures import CHORD
from lightning_meta.datamodules.episodes import STREAM, for_each_split
from lightning_meta.datamodules.sequences.music import MusicDataModule
from lightning_meta.errors import ConfigError, DataError, require_at_least

VOICES = 4
STEPS_PER_BAR = 16  # of four quarters
BAR = VOICES * STEPS_PER_BAR  # tokens
REST, FIRST_PITCH = PAD + 1, PAD + 2  # ids
LOWEST = 28  # MIDI pitch of the first: an octave below what basses sing, so that there is room to transpose
HYMNAL = 0x48594D4E  # the seed of all pieces: the data set is the same in every run, whatever the seed of episodes


def tokens_of(score: Score) -> Tensor:
    """The ids `(4 steps,)` of a score `(steps, 4)`."""
    return torch.from_numpy(np.where(score < 0, REST, score - LOWEST + FIRST_PITCH)).flatten()


def score_of(tokens: Tensor) -> Score:
    """The score `(steps, 4)` of ids; a step that is not whole is dropped, and what is no pitch is a rest."""
    ids = tokens[: len(tokens) // VOICES * VOICES].reshape(-1, VOICES).cpu().numpy()
    return np.where(ids < FIRST_PITCH, -1, ids - FIRST_PITCH + LOWEST)


class Chorales(MusicDataModule):
    """Pieces of music for soprano, alto, tenor and bass. A task is a piece: bars to learn from, then bars to predict.

    No piece is in two splits.

    Args:
        scores: `drawn` by rule, or `jsb`: chorales of Bach from `<root>/jsb_chorales/`, the split of its file.
        transpose: by -5 to +6 semitones, drawn for each episode, so that nothing but the piece says in which key it is.
        pieces: how many are drawn for training, validation and test.
        bars: of a piece that is drawn.
        root: folder of data.
        n_way: must be 1.
        k_shot, n_query: chunks to learn from, and chunks after them to predict.
        vocabulary: ids: padding, a rest and pitches from E1 on. On the command line the backbone follows it.
        length: tokens of a chunk; a bar has 64. On the command line the backbone follows it.
        **kwargs: of `EpisodicDataModule`.
    """

    voices = ("soprano", "alto", "tenor", "bass")
    first_pitch = FIRST_PITCH
    seconds = CHORD

    def __init__(
        self,
        scores: Literal["drawn", "jsb"] = "drawn",
        transpose: bool = False,
        pieces: Sequence[int] = (240, 24, 64),
        bars: int = 12,
        root: str = "data",
        n_way: int = 1,
        k_shot: int = 4,
        n_query: int = 2,
        vocabulary: int = 64,
        length: int = BAR,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, length, transpose, **kwargs)
        require_at_least(1, bars=bars)
        if length % VOICES:
            raise ConfigError(f"length={length} is no whole number of steps of {VOICES} voices; take a multiple.")
        self.pieces = for_each_split(pieces=pieces)
        self.scores, self.bars, self.root = scores, bars, Path(root)

    def sequences(self, split: Split) -> list[Tensor]:
        return [tokens_of(score) for score in self.read(split)]

    def read(self, split: Split) -> list[Score]:
        """The scores of a split."""
        if self.scores == "jsb":
            scores = chorales_of_bach(self.root, split)
        else:
            chords = self.bars * STEPS_PER_BAR // STEPS_PER_CHORD
            keys = episode_keys(HYMNAL, STREAM[split], range(self.pieces[split]))
            scores = [draw_chorale(key, chords) for key in keys]
        pitches = np.concatenate([score[score >= 0] for score in scores])
        down, up = self.margins
        low, high = pitches.min() - down, pitches.max() + up
        highest = LOWEST + self.vocabulary - FIRST_PITCH - 1
        if low < LOWEST or high > highest:
            raise DataError(
                f"the pitches of the {split} pieces are {low} to {high}{' when transposed' if self.transpose else ''}, "
                f"but vocabulary={self.vocabulary} has ids for {LOWEST} to {highest}; change it, or leave them out."
            )
        return scores

    def passage(self, tokens: Tensor) -> Passage:
        return passage_of(score_of(tokens))

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"scores": self.scores}

    def describe(self, split: Split) -> str:
        return f"{super().describe(split)}, {self.scores}"
