"""Ciphers: languages made up, of which every translation is known: translation with nothing to download.

In the manner of Gu, Wang, Chen, Cho, Li: "Meta-Learning for Low-Resource Neural Machine Translation" (2018),
arXiv:1808.08437: a task is a language with a handful of sentences and their translations into one language that all
tasks share. There it is English; here it is a small part of it, of one grammar. A made-up language has words of its own
for the same things, and an order of its own, so nothing but the support set says what a word means.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys
from lightning_meta.core.sentences import END, FIRST_WORD
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.episodes import STREAM, TaskSource
from lightning_meta.datamodules.language.translations import TranslationDataModule
from lightning_meta.errors import ConfigError, require_at_least

Ints = npt.NDArray[np.int64]

SLOTS = ("adjective", "noun", "plural", "verb", "adjective", "noun", "plural", "adverb")  # in the common language
LENGTH = len(SLOTS) + 1  # with the end
LANGUAGES = 2000  # stream of random numbers of those of a split, beside the streams of its episodes
NOUNS = (
    "dog cat bird king queen child boat house tree river stone book song star moon cloud horse fish baker singer "
    "farmer bridge tower garden letter window mountain road lamp ship coat bell apple wolf fox bear doctor teacher "
    "sailor thief"
)
VERBS = (
    "sees hears likes finds draws carries paints follows calls leaves helps meets wants knows fears breaks guards "
    "greets washes moves"
)
ADJECTIVES = "old red small tall quiet green young cold bright heavy strange proud blue soft wild poor"
ADVERBS = "often today slowly again here never soon there"
PLURAL = "-s"
NAMES = [tuple(names.split()) for names in (NOUNS, VERBS, ADJECTIVES, ADVERBS)]
SHARES = (0.45, 0.22, 0.2)  # of nouns, verbs and adjectives among the words; the others are adverbs


@dataclass(frozen=True)
class Grammar:
    """How many words of each kind the common language has. Concepts are numbered: nouns, verbs, ..., the plural."""

    nouns: int
    verbs: int
    adjectives: int
    adverbs: int

    @classmethod
    def of(cls, words: int, languages: int = 1) -> "Grammar":
        """Share out so many words, of each of the languages that share a vocabulary."""
        most = sum(map(len, NAMES)) + 1
        if not 8 <= words <= most:
            raise ConfigError(
                f"vocabulary={languages * words + FIRST_WORD} leaves {words} words of a language beside padding, "
                f"unknown and the end; take one from {languages * 8 + FIRST_WORD} to {languages * most + FIRST_WORD}."
            )
        nouns, verbs, adjectives = (max(int(share * (words - 1)), 1) for share in SHARES)
        counts = [nouns, verbs, adjectives, words - 1 - nouns - verbs - adjectives]
        for kind in (3, 2, 1, 0):  # what a kind has no names for goes to the one before it
            over = max(counts[kind] - len(NAMES[kind]), 0)
            counts[kind] -= over
            counts[kind - 1] += over
        return cls(*counts)

    @property
    def words(self) -> int:
        return self.nouns + self.verbs + self.adjectives + self.adverbs + 1

    @property
    def names(self) -> list[str]:
        """The words of the common language, by concept."""
        counts = (self.nouns, self.verbs, self.adjectives, self.adverbs)
        return [name for names, count in zip(NAMES, counts, strict=True) for name in names[:count]] + [PLURAL]

    @property
    def choices(self) -> list[tuple[int, int, bool]]:
        """For each slot its first concept, how many there are, and whether it may be empty."""
        verb = self.nouns
        adjective = verb + self.verbs
        adverb = adjective + self.adjectives
        of = {
            "noun": (0, self.nouns, False),
            "verb": (verb, self.verbs, False),
            "adjective": (adjective, self.adjectives, True),
            "adverb": (adverb, self.adverbs, True),
            "plural": (self.words - 1, 1, True),
        }
        return [of[slot] for slot in SLOTS]

    @property
    def sentences(self) -> int:
        """How many different ones there are."""
        return int(np.prod([count + empty for _, count, empty in self.choices]))

    def concepts(self, numbers: Ints) -> Ints:
        """The concept in each slot of sentences by their numbers, `(..., slots)`; -1 where there is none."""
        slots = []
        for first, count, empty in self.choices:
            numbers, digit = np.divmod(numbers, count + empty)
            slots.append(np.where(digit < count, first + digit, -1))
        return np.stack(slots, -1)


def word_orders() -> Ints:
    """All orders of the slots, `(48, slots)`: of subject, verb and object; where adjectives, plurals and adverbs go."""
    orders = []
    for parts in ("SVO", "SOV", "VSO", "VOS", "OSV", "OVS"):
        for adjective_first in (True, False):
            for plural_first in (True, False):
                for adverb_first in (True, False):
                    places: list[int] = []
                    for part in parts:
                        if part == "V":
                            places.append(3)
                            continue
                        adjective, noun, plural = (0, 1, 2) if part == "S" else (4, 5, 6)
                        named = [plural, noun] if plural_first else [noun, plural]
                        places += [adjective, *named] if adjective_first else [*named, adjective]
                    orders.append([7, *places] if adverb_first else [*places, 7])
    return np.array(orders)


def packed(concepts: Ints, length: int) -> Ints:
    """Ids `(..., length)` of words side by side, then the end, then padding; -1 is no word."""
    order = (concepts < 0).argsort(-1, kind="stable")
    concepts = np.take_along_axis(concepts, order, -1)
    ids = np.full((*concepts.shape[:-1], length), PAD)
    ids[..., : concepts.shape[-1]] = np.where(concepts < 0, PAD, concepts + FIRST_WORD)
    np.put_along_axis(ids, (concepts >= 0).sum(-1, keepdims=True), END, -1)
    return ids


@dataclass(frozen=True)
class CipherSource(TaskSource):
    """Draws languages from a list, and sentences.

    Attributes:
        grammar: of the common language.
        dictionaries: `(languages, concepts)`, which word each language has for a concept; a bijection.
        orders: `(languages, slots)`, the slots of a sentence in the order of the language.
        length: of rows of ids.
    """

    grammar: Grammar
    dictionaries: Ints
    orders: Ints
    length: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def drawn(cls, keys: Keys, grammar: Grammar, length: int, word_order: bool) -> "CipherSource":
        """A language for each key."""
        word_key, order_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        dictionaries = choose(word_key, grammar.words, grammar.words)
        orders = word_orders()
        which = choose(order_key, len(orders), 1)[:, 0] if word_order else np.zeros(len(keys), dtype=np.int64)
        return cls(grammar, dictionaries, orders[which], length)

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a task is one language: n_way must be 1, not {shape.n_way}.")
        needed = shape.k_shot + shape.n_query
        if needed > self.grammar.sentences:
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} sentences are needed, but the grammar has "
                f"{self.grammar.sentences} different ones; lower them, or take a larger vocabulary."
            )

    def language(self, keys: Keys) -> Ints:
        """The number of the language of each episode."""
        return choose(subkeys(keys, [0])[..., 0], len(self.dictionaries), 1)[:, 0]

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Sentences of a language `(T, M, length)` and their translations `(T, M, length)`, no sentence twice."""
        language_T, k = self.language(keys), shape.k_shot
        numbers_TM = choose(subkeys(keys, [1])[..., 0], self.grammar.sentences, k + shape.n_query)
        x, y = (torch.from_numpy(ids).to(self.device) for ids in self.translations(numbers_TM, language_T))
        return Episode(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:]))

    def translations(self, numbers_TM: Ints, language_T: Ints) -> tuple[Ints, Ints]:
        """Sentences by their numbers, in a language of each task and in the common one."""
        concepts_TMS = self.grammar.concepts(numbers_TM)
        order_TMS = np.broadcast_to(self.orders[language_T][:, None], concepts_TMS.shape)
        moved_TMS = np.take_along_axis(concepts_TMS, order_TMS, -1)
        words_TMS = np.where(
            moved_TMS < 0, -1, self.dictionaries[language_T][np.arange(len(language_T))[:, None, None], moved_TMS]
        )
        return packed(words_TMS, self.length), packed(concepts_TMS, self.length)

    def to(self, device: torch.device) -> "CipherSource":
        return replace(self, device=device)


class Ciphers(TranslationDataModule):
    """Made-up languages to translate from: `k_shot` support and `n_query` query sentences of one of them.

    Languages of training, validation and test are different ones. A sentence has a subject, a verb and an object, and
    at will adjectives, plurals and an adverb.

    Args:
        n_way: must be 1.
        k_shot, n_query: sentences of a language.
        vocabulary: how many ids each side has: padding, unknown, the end and the words. On the command line the
            backbone follows it, as it follows `length`.
        length: ids in a row; the longest sentence has 8 words and an end.
        train_languages, val_languages, test_languages: how many there are.
        word_order: each language has one of 48 orders; false: all have that of the common language.
        **kwargs: of `TranslationDataModule`.
    """

    def __init__(
        self,
        n_way: int = 1,
        k_shot: int = 20,
        n_query: int = 20,
        vocabulary: int = 23,
        length: int = LENGTH,
        train_languages: int = 2000,
        val_languages: int = 100,
        test_languages: int = 200,
        word_order: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, length, **kwargs)
        require_at_least(1, train_languages=train_languages, val_languages=val_languages, test_languages=test_languages)
        check_length(length)
        self.word_order, self.grammar = word_order, Grammar.of(vocabulary - FIRST_WORD)
        self.counts: dict[Split, int] = {"train": train_languages, "val": val_languages, "test": test_languages}

    def load_source(self, split: Split) -> CipherSource:
        """Languages are functions of (seed, split, number)."""
        keys = episode_keys(self.seed, LANGUAGES + STREAM[split], np.arange(self.counts[split]))
        return CipherSource.drawn(keys, self.grammar, self.length, self.word_order)

    def source_words(self) -> list[str]:
        return [spelled(word) for word in range(self.grammar.words)]

    def target_words(self) -> list[str]:
        return self.grammar.names

    def count_languages(self, split: Split) -> int:
        return self.counts[split]

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"word_order": self.word_order}


def check_length(length: int) -> None:
    """Raise `ConfigError` unless a row of so many ids holds the longest sentence."""
    if length < LENGTH:
        raise ConfigError(f"length={length} cuts sentences off, which have up to {LENGTH} ids; take {LENGTH}.")


def spelled(word: int) -> str:
    """Syllables that a word of a made-up language is written with."""
    first, second = divmod(word, 10)
    return "bdfgklmnprst"[first % 12] + "aeiou"[word % 5] + "lmnrszkpbg"[second] + "aeiou"[(first + second) % 5]
