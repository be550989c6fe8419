"""What data of sentences and their translations share."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.sentences import END, FIRST_WORD
from lightning_meta.core.tokenizer import PAD, UNKNOWN
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import DataError


class TranslationDataModule(EpisodicDataModule):
    """Episodes of sentences and their translations, rows of ids. Data sets write `load_source` and what words are.

    Args:
        n_way: must be 1.
        k_shot, n_query: sentences of a language.
        vocabulary: how many ids each side has at most. On the command line the backbone follows it.
        length: ids in a row, with the end of a sentence. On the command line the backbone follows it.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(self, n_way: int, k_shot: int, n_query: int, vocabulary: int, length: int, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        self.vocabulary, self.length = vocabulary, length

    def source_words(self) -> list[str]:
        """How the words of the source languages are written, by their ids from `FIRST_WORD` on."""
        raise NotImplementedError

    def target_words(self) -> list[str]:
        """How the words of the common language are written, by their ids from `FIRST_WORD` on."""
        raise NotImplementedError

    def source_ids(self, text: str) -> list[int]:
        """Ids of the words of a sentence."""
        return _ids(text, self.source_words())

    def target_ids(self, text: str) -> list[int]:
        """Ids of the words of a translation."""
        return _ids(text, self.target_words())

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint has of this data, its `state_dict`; no file is read. By default there is none."""

    def rows_of(self, sentences: Iterable[Sequence[int]], place: Path) -> Tensor:
        """Rows `(sentences, length)` of ids with an end after the last word, of sentences at a place.

        Raises `DataError` where one has no words or too many.
        """
        rows = []
        for number, ids in enumerate(sentences, 1):
            if not 0 < len(ids) < self.length:
                raise DataError(
                    f"sentence {number} of {place} has {len(ids)} words, but the run was trained on sentences of 1 to "
                    f"{self.length - 1}; shorten it or leave it out."
                )
            rows.append([*ids, END, *[PAD] * (self.length - len(ids) - 1)])
        return torch.tensor(rows)

    def count_languages(self, split: Split) -> int:
        """How many languages a split has."""
        raise NotImplementedError

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"languages": self.count_languages(split), "vocabulary": self.vocabulary}

    def describe(self, split: Split) -> str:
        shape, languages = self.shapes[split], self.count_languages(split)
        return f"{shape.k_shot} support and {shape.n_query} query sentences of one of {languages} languages"


def _ids(text: str, words: Sequence[str]) -> list[int]:
    known = {word: number for number, word in enumerate(words, FIRST_WORD)}
    return [known.get(word, UNKNOWN) for word in text.split()]
