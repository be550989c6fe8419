"""Topics: documents of a small grammar, each with words of its own that come often: nothing to download."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys, uniform
from lightning_meta.core.sentences import END, FIRST_WORD
from lightning_meta.datamodules.episodes import STREAM, for_each_split
from lightning_meta.datamodules.language.ciphers import Grammar
from lightning_meta.datamodules.sequences.chunks import SequenceDataModule
from lightning_meta.errors import ConfigError, require_at_least

Floats = npt.NDArray[np.float64]
LIBRARY = 0x4C494252  # the seed of all documents: the data set is the same in every run, whatever the seed of episodes
EMPTY = 0.5  # how often a part of a sentence that may be left out is
SHORTEST = 4  # ids of a sentence: a subject, a verb, an object and the end


def frequencies(keys: Keys, grammar: Grammar, focus: float) -> Floats:
    """How often each document takes each word, among those of its kind `(documents, words)`.

    The word that comes r-th in the order of a document, which is drawn, has the weight `r ** -focus`.
    """
    kinds = sorted({(first, count) for first, count, _ in grammar.choices})
    found = np.empty((len(keys), grammar.words))
    for kind, (first, count) in enumerate(kinds):
        rank = choose(subkeys(keys, [kind])[..., 0], count, count)
        weights = (1.0 + rank) ** -focus
        found[:, first : first + count] = weights / weights.sum(1, keepdims=True)
    return found


def written(keys: Keys, grammar: Grammar, frequency_DW: Floats, tokens: int) -> list[Tensor]:
    """Documents of so many ids: sentences one after the other, each with its end."""
    sentences, slots = -(-tokens // SHORTEST), grammar.choices
    draws = uniform(keys, sentences * 2 * len(slots)).reshape(len(keys), sentences, 2, len(slots))
    ids_DSP = np.full((len(keys), sentences, len(slots) + 1), -1)
    ids_DSP[..., -1] = END
    for slot, (first, count, may_be_empty) in enumerate(slots):
        ends_DW = frequency_DW[:, first : first + count].cumsum(1)
        chance_DS = draws[:, :, 0, slot] * ends_DW[:, -1:]
        word_DS = (chance_DS[..., None] >= ends_DW[:, None, :-1]).sum(-1)
        there_DS = draws[:, :, 1, slot] >= EMPTY if may_be_empty else True
        ids_DSP[..., slot] = np.where(there_DS, FIRST_WORD + first + word_DS, -1)
    return [torch.from_numpy(ids[ids >= 0][:tokens]) for ids in ids_DSP]


def entropy(grammar: Grammar, frequency_DW: Floats) -> Floats:
    """Nats per token of each document `(documents,)` for whoever knows its frequencies: no prediction is better.

    Kinds of words are disjoint, so a word says which parts were left out before it, and the chain rule adds up.
    """
    surprise_DW = -frequency_DW * np.log(frequency_DW)
    nats_D, tokens = np.zeros(len(frequency_DW)), 1.0
    for first, count, may_be_empty in grammar.choices:
        there = 1 - EMPTY if may_be_empty else 1.0
        choice = -EMPTY * np.log(EMPTY) - (1 - EMPTY) * np.log(1 - EMPTY) if may_be_empty else 0.0
        nats_D += choice + there * surprise_DW[:, first : first + count].sum(1)
        tokens += there
    return nats_D / tokens


class Topics(SequenceDataModule):
    """Made-up documents: all have one grammar, and each has nouns, verbs, adjectives and adverbs that it prefers.

    A task is a document: chunks to learn from, then chunks to predict. No document is in two splits.

    Args:
        documents: how many there are for training, validation and test.
        tokens: of a document.
        focus: how much a document prefers its words: the r-th of a kind has the weight `r ** -focus`; 0: not at all.
        n_way: must be 1.
        k_shot, n_query: chunks to learn from, and chunks after them to predict.
        vocabulary: ids: padding, unknown, the end of a sentence and the words. On the command line the backbone follows
            it.
        length: tokens of a chunk. On the command line the backbone follows it.
        **kwargs: of `EpisodicDataModule`.
    """

    of = ("document", "documents")

    def __init__(
        self,
        documents: Sequence[int] = (2000, 100, 200),
        tokens: int = 320,
        focus: float = 2.0,
        n_way: int = 1,
        k_shot: int = 8,
        n_query: int = 4,
        vocabulary: int = 63,
        length: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, length, **kwargs)
        require_at_least(1, tokens=tokens)
        if focus < 0:
            raise ConfigError(f"focus={focus} would make the first words of a document the rarest; take 0 or more.")
        self.documents = for_each_split(documents=documents)
        self.tokens, self.focus = tokens, focus
        self.grammar = Grammar.of(vocabulary - FIRST_WORD)

    def frequencies(self, split: Split) -> Floats:
        """Of each document of a split, see `frequencies`."""
        return frequencies(subkeys(self._keys(split), [0])[..., 0], self.grammar, self.focus)

    def sequences(self, split: Split) -> list[Tensor]:
        return written(subkeys(self._keys(split), [1])[..., 0], self.grammar, self.frequencies(split), self.tokens)

    def _keys(self, split: Split) -> Keys:
        return episode_keys(LIBRARY, STREAM[split], range(self.documents[split]))

    def entropy(self, split: Split) -> float:
        """Nats per token that no prediction undercuts, mean over the documents of a split."""
        return float(entropy(self.grammar, self.frequencies(split)).mean())

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"entropy": round(self.entropy(split), 4)}

    def describe(self, split: Split) -> str:
        return f"{super().describe(split)} of {self.entropy(split):.2f} nats per token at best"
