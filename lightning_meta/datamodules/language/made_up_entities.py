"""Made-up languages with names in their sentences: sequence labelling with nothing to download.

A task is a language. A name is one to three capitalised words, which all languages share, and any of them may be that
of anything: a person, a place. Before it stands the word of the language for the kind, in lower case like all others.
So where names are can be learned from other languages, and of what kind they are from the support set alone.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys, uniform
from lightning_meta.core.tags import NO_WORD
from lightning_meta.core.word_parts import hashed_parts
from lightning_meta.datamodules.episodes import STREAM, TaskSource
from lightning_meta.datamodules.language.ciphers import spelled
from lightning_meta.datamodules.language.tagging import TaggingDataModule
from lightning_meta.errors import ConfigError, require_at_least

Ints = npt.NDArray[np.int64]

WORDS = 100  # of all languages together, and as many names
PIECES = 3  # of a sentence
FILLERS, NAMES = 2, 3  # words of a piece before its kind and name, at most; words of a name
PIECE = FILLERS + 1 + NAMES
LENGTH = PIECES * PIECE
LANGUAGES = 2000  # stream of random numbers of those of a split, beside the streams of its episodes
SILENT = 0.25  # share of the pieces without a name


@dataclass(frozen=True)
class MadeUpSource(TaskSource):
    """Draws languages from a list, and sentences.

    Attributes:
        kinds: `(languages, E)`, the word of each language for each entity.
        fillers: `(languages, F)`, its other words.
        parts: `(2 WORDS + 1, G)`, what words, then names, are made of; last, padding.
    """

    kinds: Ints
    fillers: Ints
    parts: Tensor

    def check(self, shape: EpisodeShape) -> None:
        """Any number of sentences can be drawn; how many tags there are, the data module has seen to."""

    def language(self, keys: Keys) -> Ints:
        """The number of the language of each episode."""
        return choose(subkeys(keys, [0])[..., 0], len(self.kinds), 1)[:, 0]

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Sentences of a language `(T, M, LENGTH, G)` and the tags of their words `(T, M, LENGTH)`."""
        words_TML, tags_TML = self.sentences(subkeys(keys, [1])[..., 0], self.language(keys), sum(shape[1:]))
        device, k = self.parts.device, shape.k_shot
        x, y = self.parts[torch.from_numpy(words_TML).to(device)], torch.from_numpy(tags_TML).to(device)
        return Episode(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:]))

    def sentences(self, keys: Keys, language_T: Ints, count: int) -> tuple[Ints, Ints]:
        """Numbers of words, of which -1 is padding, and their tags `(T, M, LENGTH)`."""
        shape = (len(keys), count, PIECES)
        size_key, kind_key, word_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        sizes = uniform(size_key, count * PIECES * 3).reshape(*shape, 3)
        fillers_TMP = (sizes[..., 0] * (FILLERS + 1)).astype(np.int64)
        names_TMP = np.where(sizes[..., 1] < SILENT, 0, 1 + (sizes[..., 2] * NAMES).astype(np.int64))
        kind_TMP = (uniform(kind_key, count * PIECES) * self.kinds.shape[1]).astype(np.int64).reshape(shape)
        draws = uniform(word_key, count * LENGTH).reshape(*shape, PIECE)
        of_language = np.arange(len(keys)), language_T
        words = np.full((*shape, PIECE), -1)
        own_TF = self.fillers[language_T]
        task_T = of_language[0][:, None, None, None]
        words[..., :FILLERS] = own_TF[task_T, (draws[..., :FILLERS] * own_TF.shape[1]).astype(np.int64)]
        words[..., FILLERS] = self.kinds[language_T][task_T[..., 0], kind_TMP]
        words[..., FILLERS + 1 :] = WORDS + (draws[..., FILLERS + 1 :] * WORDS).astype(np.int64)
        place = np.arange(PIECE)
        there = np.where(
            place < FILLERS,
            place < fillers_TMP[..., None],
            (names_TMP[..., None] > 0) & (place - FILLERS <= names_TMP[..., None]),
        )
        there[:, :, 0, 0] |= ~there.any((-2, -1))  # no sentence without words
        first = 1 + 2 * kind_TMP[..., None]
        tags = np.where(place <= FILLERS, 0, np.where(place == FILLERS + 1, first, first + 1))
        flat = (*shape[:2], LENGTH)
        there, words, tags = (array.reshape(flat) for array in (there, words, tags))
        order = (~there).argsort(-1, kind="stable")
        packed = [np.where(there, array, blank) for array, blank in ((words, -1), (tags, NO_WORD))]
        words, tags = (np.take_along_axis(array, order, -1) for array in packed)
        return words, tags

    def to(self, device: torch.device) -> "MadeUpSource":
        return replace(self, parts=self.parts.to(device))


class MadeUpEntities(TaggingDataModule):
    """Made-up languages: `k_shot` support and `n_query` query sentences of one, with the tags of their words.

    Languages of training, validation and test are different ones, of the same words: what is a kind in one is any word
    in another.

    Args:
        n_way, k_shot, n_query, entities, vocabulary, word_parts: of `TaggingDataModule`.
        length: words of a sentence: 18.
        train_languages, val_languages, test_languages: how many there are.
        words: of a language, besides those for kinds.
        **kwargs: of `TaggingDataModule`.
    """

    def __init__(
        self,
        n_way: int = 9,
        k_shot: int = 8,
        n_query: int = 30,
        vocabulary: int = 1000,
        length: int = LENGTH,
        word_parts: int = 6,
        train_languages: int = 1000,
        val_languages: int = 100,
        test_languages: int = 200,
        words: int = 30,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary=vocabulary, length=length, word_parts=word_parts, **kwargs)
        require_at_least(
            1, train_languages=train_languages, val_languages=val_languages, test_languages=test_languages, words=words
        )
        if length != LENGTH:
            raise ConfigError(f"length={length}, but sentences have up to {LENGTH} words; leave it out.")
        if words + len(self.entities) > WORDS:
            raise ConfigError(
                f"words={words} and one for each of {len(self.entities)} entities are more than the {WORDS} that there "
                f"are; take {WORDS - len(self.entities)} at most."
            )
        self.words = words
        self.counts: dict[Split, int] = {"train": train_languages, "val": val_languages, "test": test_languages}

    def load_source(self, split: Split) -> MadeUpSource:
        """Languages are functions of (seed, split, number)."""
        keys = episode_keys(self.seed, LANGUAGES + STREAM[split], np.arange(self.counts[split]))
        words = choose(keys, WORDS, len(self.entities) + self.words)
        kinds, fillers = np.split(words, [len(self.entities)], axis=1)
        parts = [hashed_parts(word, self.vocabulary, self.word_parts) for word in written()]
        return MadeUpSource(kinds, fillers, torch.tensor([*parts, [0] * self.word_parts]))

    def count_languages(self, split: Split) -> int:
        return self.counts[split]


def written() -> list[str]:
    """All words by their numbers: those of languages, then names."""
    words = [spelled(word) for word in range(WORDS)]
    return words + [word[::-1].capitalize() for word in words]
