"""Pieces of music as sequences of tokens, each episode in a key of its own where that is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, subkeys
from lightning_meta.datamodules.audio.midi import STEPS_PER_QUARTER, Passage
from lightning_meta.datamodules.sequences.chunks import ChunkBank, SequenceDataModule

DOWN, UP = 5, 6  # semitones: with these every key is as likely


def transposed(ids: Tensor, semitones: int | Tensor, first_pitch: int, ids_per_semitone: int = 1) -> Tensor:
    """The same tokens, all pitches so much higher: the ids from `first_pitch` on."""
    return torch.where(ids < first_pitch, ids, ids + semitones * ids_per_semitone)


@dataclass(frozen=True)
class TransposingBank(ChunkBank):
    """Chunks of which each episode is in a key of its own, drawn with it.

    Attributes:
        first_pitch: the least id that is of a pitch.
        ids_per_semitone: how much greater the id of the next pitch is.
    """

    first_pitch: int = 0
    ids_per_semitone: int = 1

    def draw(self, keys: Keys, shape: EpisodeShape) -> Tensor:
        """The rows of each episode, and before them its transposition, `(T, 1 + K + Q)`."""
        rows_TM = super().draw(keys, shape)
        semitones_T1 = choose(subkeys(keys, [2])[..., 0], DOWN + UP + 1, 1) - DOWN
        return torch.cat([torch.from_numpy(semitones_T1).to(rows_TM), rows_TM], 1)

    def make(self, drawn: Tensor, shape: EpisodeShape) -> Episode:
        support, query = super().make(drawn[:, 1:], shape)
        semitones_T11 = drawn[:, :1, None]
        return Episode(*(Batch(*(self.transposed(ids, semitones_T11) for ids in part)) for part in (support, query)))

    def transposed(self, ids: Tensor, semitones: Tensor) -> Tensor:
        return transposed(ids, semitones, self.first_pitch, self.ids_per_semitone)


class MusicDataModule(SequenceDataModule):
    """Episodes of passages of pieces. A data set writes `sequences`, and `passage` to read tokens as notes.

    Args:
        n_way: must be 1.
        k_shot, n_query: chunks to learn from, and chunks after them to predict.
        vocabulary: how many ids there are.
        length: tokens of a chunk.
        transpose: by -5 to +6 semitones, drawn for each episode, so that nothing but the piece says in which key it is.
        **kwargs: of `EpisodicDataModule`.
    """

    of = ("piece", "pieces")
    voices: ClassVar[tuple[str, ...]]  # their names
    first_pitch: ClassVar[int]  # the least id that is of a pitch
    ids_per_semitone: ClassVar[int] = 1
    steps_per_quarter: int = STEPS_PER_QUARTER
    seconds: float  # of a quarter, when it is played

    def __init__(
        self, n_way: int, k_shot: int, n_query: int, vocabulary: int, length: int, transpose: bool, **kwargs: Any
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, length, **kwargs)
        self.transpose = transpose

    def passage(self, tokens: Tensor) -> Passage:
        """The notes that ids stand for."""
        raise NotImplementedError

    @property
    def margins(self) -> tuple[int, int]:
        """How many semitones pitches are moved down and up at most."""
        return (DOWN, UP) if self.transpose else (0, 0)

    def bank(self, tasks: Sequence[Batch]) -> ChunkBank:
        if not self.transpose:
            return super().bank(tasks)
        bank = cast(TransposingBank, TransposingBank.from_tasks(tasks))
        return replace(bank, first_pitch=self.first_pitch, ids_per_semitone=self.ids_per_semitone)

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"transposed": self.transpose}

    def describe(self, split: Split) -> str:
        return f"{super().describe(split)}{', transposed' if self.transpose else ''}"
