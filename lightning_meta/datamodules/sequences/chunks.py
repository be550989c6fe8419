"""Sequences as tasks: the first chunks of a passage are learned from, those that follow are to be predicted."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, subkeys
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.task_bank import TaskBank
from lightning_meta.errors import ConfigError, require_at_least

log = logging.getLogger(__name__)

START = PAD  # what stands before the first token of a sequence


class ChunkBank(TaskBank):
    """Sequences cut into chunks of L tokens. An episode is a passage: neighbouring chunks, the query after the support.

    Inputs and targets are `(E, L)`: at each place of a chunk the token before it and the token. The first input of a
    chunk is the last token of the chunk before it.
    """

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a task is one sequence: n_way must be 1, not {shape.n_way}.")
        super().check(shape)

    def draw(self, keys: Keys, shape: EpisodeShape) -> Tensor:
        task_key, place_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        task_T, chunks = choose(task_key, len(self.size), 1)[..., 0], shape.k_shot + shape.n_query
        begin_T1 = choose(place_key, self.size[task_T] - chunks + 1, 1)
        rows_TM = self.first[task_T][:, None] + begin_T1 + np.arange(chunks)
        return torch.from_numpy(rows_TM).to(self.inputs.device)


def cut(tokens: Tensor, length: int) -> Batch:
    """The whole chunks of a sequence `(tokens,)`, each `(chunks, length)`; what is left at its end is dropped."""
    kept = tokens[: len(tokens) // length * length]
    before = torch.cat([kept.new_full((1,), START), kept])[: len(kept)]
    return Batch(before.view(-1, length), kept.view(-1, length))


class SequenceDataModule(EpisodicDataModule):
    """Episodes of passages, rows of ids. A data set writes `sequences`.

    Args:
        n_way: must be 1.
        k_shot, n_query: chunks to learn from, and chunks after them to predict.
        vocabulary: how many ids there are. On the command line the backbone follows it.
        length: tokens of a chunk. On the command line the backbone follows it.
        **kwargs: of `EpisodicDataModule`.
    """

    next_tokens: ClassVar[bool] = True  # the targets
    of = ("sequence", "sequences")  # what a task is called, and several of them

    def __init__(self, n_way: int, k_shot: int, n_query: int, vocabulary: int, length: int, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, length=length)
        self.vocabulary, self.length = vocabulary, length

    def sequences(self, split: Split) -> Sequence[Tensor]:
        """The ids `(tokens,)` of each of a split's sequences."""
        raise NotImplementedError

    def bank(self, tasks: Sequence[Batch]) -> ChunkBank:
        """A source of the chunks of sequences."""
        return cast(ChunkBank, ChunkBank.from_tasks(tasks))

    def load_source(self, split: Split) -> ChunkBank:
        """Without the sequences that are too short."""
        tasks = [cut(tokens, self.length) for tokens in self.sequences(split)]
        shape, one, many = self.shapes[split], *self.of
        needed = shape.k_shot + shape.n_query
        kept = [task for task in tasks if len(task.y) >= needed]
        if not kept:
            longest = max((len(task.y) for task in tasks), default=0)
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} chunks of length={self.length} tokens are needed of "
                f"a {one}, but the longest of {len(tasks)} {many} for {split} has {longest}; lower one of them."
            )
        if left_out := len(tasks) - len(kept):
            log.info(
                "%d of %d %s for %s are left out: they have fewer than %d chunks of %d tokens.",
                left_out, len(tasks), many, split, needed, self.length,
            )  # fmt: skip
        return self.bank(kept)

    def count(self, split: Split) -> int:
        """How many sequences of a split are used (after `setup`)."""
        return len(cast(ChunkBank, self.sources[split]).size)

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {self.of[1]: self.count(split), "length": self.length}

    def describe(self, split: Split) -> str:
        shape, many = self.shapes[split], self.of[1]
        return (
            f"{shape.k_shot} support and {shape.n_query} query chunks of {self.length} tokens of one of "
            f"{self.count(split)} {many}"
        )
