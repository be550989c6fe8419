"""Switched ciphers: sentences that change over to another made-up language, for language models.

Winata, Cahyawijaya, Lin, Liu, Xu, Fung: "Meta-Transfer Learning for Code-Switched Speech Recognition" (2020),
arXiv:2004.14228, which has language models too: adapt to sentences of one language each, and be judged on sentences
that switch between them, so that a model learns from the first what serves the second.

A task is a pair of languages as in `Ciphers`, each with words and an order of its own. A sentence that switches has the
order of the first, and a span of its words is of the second, in that order. In linguistics these are the matrix and the
embedded language: Myers-Scotton: "Duelling Languages" (1993).

Deviations: in the paper there is one pair, English and Mandarin, whose words a model has seen in training; a batch of
sentences is a task. Here each task has a pair of its own, and nothing is known of the languages of the test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys, whole
from lightning_meta.core.sentences import FIRST_WORD
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import STREAM, TaskSource, for_each_split
from lightning_meta.datamodules.language.ciphers import (
    LANGUAGES,
    LENGTH,
    CipherSource,
    Grammar,
    check_length,
    packed,
    spelled,
)
from lightning_meta.datamodules.sequences.chunks import START
from lightning_meta.errors import ConfigError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@cache
def spans(words: int) -> list[tuple[int, int]]:
    """Where neighbouring words, but not all of so many, begin and end."""
    return [(begin, end) for begin in range(words) for end in range(begin + 1, words + 1) if end - begin < words]


@dataclass(frozen=True)
class SwitchedSource(TaskSource):
    """Draws pairs of languages, and sentences of one of them or of both.

    Attributes:
        languages: those of pair p are numbers 2 p, the matrix, and 2 p + 1, the embedded one.
        support_languages, query_languages: of a sentence, 1 or 2.
    """

    languages: CipherSource
    support_languages: int
    query_languages: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a task is one pair of languages: n_way must be 1, not {shape.n_way}.")
        self.languages.check(shape)

    def pair(self, keys: Keys) -> Ints:
        """The number of the pair of each episode."""
        return choose(subkeys(keys, [0])[..., 0], len(self.languages.dictionaries) // 2, 1)[:, 0]

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Sentences `(T, M, length)` as targets, and the token before each of theirs as inputs; no sentence twice.

        Where a sentence has one language, the two take turns.
        """
        number_key, span_key = np.moveaxis(subkeys(keys, [1, 2]), -1, 0)
        numbers_TM = choose(number_key, self.languages.grammar.sentences, shape.k_shot + shape.n_query)
        place_M = np.concatenate([np.arange(shape.k_shot), np.arange(shape.n_query)])
        languages_M = np.repeat([self.support_languages, self.query_languages], shape[1:])
        y_TML = self.written(numbers_TM, self.pair(keys), languages_M == 2, place_M % 2, span_key)
        x_TML = np.concatenate([np.full_like(y_TML[..., :1], START), y_TML[..., :-1]], -1)
        x, y = (torch.from_numpy(ids).to(self.device) for ids in (x_TML, y_TML))
        k = shape.k_shot
        return Episode(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:]))

    def written(self, numbers_TM: Ints, pair_T: Ints, switches_M: Bools, turn_M: Ints, keys_T: Keys) -> Ints:
        """Sentences by their numbers `(T, M, length)`: they switch, or are in the language of their turn, 0 or 1."""
        languages, grammar = self.languages, self.languages.grammar
        frame_TM = 2 * pair_T[:, None] + np.where(switches_M, 0, turn_M)
        concepts_TMS = np.take_along_axis(grammar.concepts(numbers_TM), languages.orders[frame_TM], -1)
        there_TMS = concepts_TMS >= 0
        begin_TM1, end_TM1 = self.drawn_spans(subkeys(keys_T, np.arange(len(turn_M))), there_TMS.sum(-1))
        place_TMS = there_TMS.cumsum(-1) - 1
        inside_TMS = (place_TMS >= begin_TM1) & (place_TMS < end_TM1)
        embedded_TMS = np.where(switches_M[:, None], inside_TMS, turn_M[:, None] == 1).astype(np.int64)
        language_TMS = 2 * pair_T[:, None, None] + embedded_TMS
        words_TMS = embedded_TMS * grammar.words + languages.dictionaries[language_TMS, concepts_TMS]
        return packed(np.where(there_TMS, words_TMS, -1), languages.length)

    def drawn_spans(self, keys_TM: Keys, words_TM: Ints) -> tuple[Ints, Ints]:
        """Where the span of sentences of so many words begins and ends `(T, M, 1)`: all are equally likely."""
        count = np.array([len(spans(words)) for words in range(LENGTH)])
        places = np.zeros((LENGTH, count.max(), 2), np.int64)
        for words in range(2, LENGTH):
            places[words, : count[words]] = spans(words)
        begin_TM, end_TM = np.moveaxis(places[words_TM, whole(keys_TM, 0, count[words_TM] - 1)], -1, 0)
        return begin_TM[..., None], end_TM[..., None]

    def to(self, device: torch.device) -> "SwitchedSource":
        return replace(self, device=device)


class SwitchedCiphers(EpisodicDataModule):
    """Pairs of made-up languages: read sentences of either, then predict sentences that switch between the two.

    The support set has `k_shot` sentences, of the two languages in turn, and the query set `n_query` others, which are
    translations of none of those. Words that both languages write alike are two ids.

    Args:
        n_way: must be 1.
        k_shot, n_query: sentences of a pair of languages.
        vocabulary: how many ids there are: padding, unknown, the end, and as many words of the one language as of the
            other. On the command line the backbone follows it, as it follows `length`.
        length: ids in a row; the longest sentence has 8 words and an end.
        pairs: how many pairs of languages there are for training, validation and test; no language is in two.
        support_languages, query_languages: of a sentence: 2 is one that switches, 1 one that does not. With
            `query_languages: 1` a task is judged on the kind of sentences that it adapts to.
        word_order: each language has one of 48 orders; false: all have that of the common language of `Ciphers`.
        **kwargs: of `EpisodicDataModule`.
    """

    next_tokens: ClassVar[bool] = True  # the targets

    def __init__(
        self,
        n_way: int = 1,
        k_shot: int = 20,
        n_query: int = 20,
        vocabulary: int = 43,
        length: int = LENGTH,
        pairs: Sequence[int] = (2000, 100, 200),
        support_languages: int = 1,
        query_languages: int = 2,
        word_order: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        self.pairs = for_each_split(pairs=pairs)
        check_length(length)
        for name, count in (("support_languages", support_languages), ("query_languages", query_languages)):
            if count not in (1, 2):
                raise ConfigError(
                    f"{name}={count} must be 1 or 2: a sentence is of one language, or switches to another."
                )
        words, left = divmod(vocabulary - FIRST_WORD, 2)
        if left:
            raise ConfigError(
                f"vocabulary={vocabulary} leaves {2 * words + 1} words beside padding, unknown and the end, which two "
                f"languages cannot share equally; take {vocabulary + 1}."
            )
        self.grammar = Grammar.of(words, languages=2)
        self.vocabulary, self.length, self.word_order = vocabulary, length, word_order
        self.support_languages, self.query_languages = support_languages, query_languages

    def load_source(self, split: Split) -> SwitchedSource:
        """Languages are functions of (seed, split, number)."""
        keys = episode_keys(self.seed, LANGUAGES + STREAM[split], np.arange(2 * self.pairs[split]))
        languages = CipherSource.drawn(keys, self.grammar, self.length, self.word_order)
        return SwitchedSource(languages, self.support_languages, self.query_languages)

    def words(self) -> list[str]:
        """How words are written, by their ids from `FIRST_WORD` on: those of the embedded language in capitals."""
        matrix = [spelled(word) for word in range(self.grammar.words)]
        return [*matrix, *map(str.upper, matrix)]

    def entropy(self) -> float:
        """Nats per token of query sentences for whoever knows both languages: no prediction is better.

        All sentences are equally likely, and so are all ways to write one: each span, or else each language.
        """
        chance_N = np.ones(1)  # of so many words
        for _, count, may_be_empty in self.grammar.choices:
            there = count / (count + may_be_empty)
            chance_N = np.convolve(chance_N, [1 - there, there])
        ways_N = np.array([len(spans(words)) if self.query_languages == 2 else 2 for words in range(LENGTH)])
        surprise = np.log(self.grammar.sentences) + (chance_N * np.log(np.maximum(ways_N, 1))).sum()
        return float(surprise / ((chance_N * np.arange(LENGTH)).sum() + 1))

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {
            "pairs": self.pairs[split],
            "vocabulary": self.vocabulary,
            "support_languages": self.support_languages,
            "query_languages": self.query_languages,
            "word_order": self.word_order,
            "entropy": round(self.entropy(), 4),
        }

    def describe(self, split: Split) -> str:
        shape, kinds = self.shapes[split], {1: "of one language", 2: "that switch"}
        return (
            f"{shape.k_shot} sentences {kinds[self.support_languages]}, then {shape.n_query} "
            f"{kinds[self.query_languages]}, {self.entropy():.2f} nats per token at best"
        )
