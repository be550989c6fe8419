"""Made-up sentences with marked entities: relation classification with nothing to download.

A sentence has two clauses, each a name, two words and another name. The two words are the relation. Marks say which of
the clauses is meant; the other one states another relation.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import choose, episode_keys, subkeys, uniform
from lightning_meta.core.tokenizer import FIRST, PAD
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.text.relations import MARKS
from lightning_meta.errors import ConfigError, require_at_least

Ints = npt.NDArray[np.int64]

WORDS, NAMES, FILLERS = 16, 40, 20  # of relations, of entities, of what else there is
FIRST_WORD = FIRST + len(MARKS)
FIRST_NAME = FIRST_WORD + WORDS
FIRST_FILLER = FIRST_NAME + NAMES
VOCABULARY = FIRST_FILLER + FILLERS
HEAD, END_OF_HEAD, TAIL, END_OF_TAIL = range(FIRST, FIRST_WORD)
LENGTH = 2 * (4 + len(MARKS)) + 3
RELATIONS = WORDS * (WORDS - 1)  # pairs of different words, in order
SHARES = {"train": (0, 140), "val": (140, 180), "test": (180, RELATIONS)}  # of a shuffled list
SHUFFLE = 3000  # the stream of random numbers that orders relations; those of sentences follow


class MadeUpRelations(ClassificationDataModule):
    """Sentences by the relation of two marked names: 140 / 40 / 60 relations.

    Token ids are: padding, unknown, the four marks, then the words.

    Args:
        markers: false leaves the marks out, for comparison.
        vocabulary, length: of ids, and of a sentence. On the command line the backbone follows them.
        sentences: of each relation.
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(
        self,
        markers: bool = True,
        vocabulary: int = VOCABULARY,
        length: int = LENGTH,
        sentences: int = 40,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(1, sentences=sentences)
        if (vocabulary, length) != (VOCABULARY, LENGTH):
            raise ConfigError(
                f"vocabulary={vocabulary} and length={length}, but there are {VOCABULARY} ids and rows of {LENGTH}; "
                "leave both out."
            )
        self.markers, self.vocabulary, self.length, self.sentences = markers, vocabulary, length, sentences

    def load_source(self, split: Split) -> ClassBank:
        """Relations and their sentences are functions of (seed, split, number)."""
        order = choose(episode_keys(self.seed, SHUFFLE, [0]), RELATIONS, RELATIONS)[0]
        relation_C = order[slice(*SHARES[split])]
        keys = episode_keys(self.seed, SHUFFLE + 1 + STREAM[split], np.arange(len(relation_C)))
        return ClassBank.from_classes(torch.from_numpy(self._written(relation_C, keys)))

    def _written(self, relation_C: Ints, keys: npt.NDArray[np.uint64]) -> Ints:
        """Rows of ids `(C, sentences, length)` of each relation."""
        shape = (len(relation_C), self.sentences)
        other_key, word_key, order_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        other_CM = (uniform(other_key, self.sentences) * (RELATIONS - 1)).astype(np.int64)
        other_CM += other_CM >= relation_C[:, None]
        draws = uniform(word_key, self.sentences * 10).reshape(*shape, 10)
        names_CM4 = FIRST_NAME + (draws[..., :4] * NAMES).astype(np.int64)
        fillers_CM3 = FIRST_FILLER + (draws[..., 4:7] * FILLERS).astype(np.int64)
        fillers_CM3 = np.where(draws[..., 7:] < 0.5, fillers_CM3, PAD)
        meant = self._clause(np.broadcast_to(relation_C[:, None], shape), names_CM4[..., :2], self.markers)
        other = self._clause(other_CM, names_CM4[..., 2:], False)
        first, gap, last = (fillers_CM3[..., place, None] for place in range(3))
        swapped = (uniform(order_key, self.sentences) < 0.5)[..., None]
        rows = np.where(
            swapped,
            np.concatenate([first, other, gap, meant, last], -1),
            np.concatenate([first, meant, gap, other, last], -1),
        )
        return np.take_along_axis(rows, (rows == PAD).argsort(-1, kind="stable"), -1)

    def _clause(self, relation: Ints, names: Ints, marked: bool) -> Ints:
        """A name, the two words of a relation and a name `(..., 8)`, with marks or padding around the names."""
        left, right = words_of(relation)
        marks = (HEAD, END_OF_HEAD, TAIL, END_OF_TAIL) if marked else (PAD,) * 4
        before, after, start, stop = (np.full_like(left, mark) for mark in marks)
        return np.stack([before, names[..., 0], after, left, right, start, names[..., 1], stop], -1)


def words_of(relation: Ints) -> tuple[Ints, Ints]:
    """The ids of the two words of relations by their numbers."""
    left, right = np.divmod(relation, WORDS - 1)
    return FIRST_WORD + left, FIRST_WORD + right + (right >= left)
