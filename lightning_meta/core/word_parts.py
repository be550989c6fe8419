"""What a word is made of, as ids by a hash: so no vocabulary is counted, and a word of any language has some.

Bojanowski, Grave, Joulin, Mikolov: "Enriching Word Vectors with Subword Information" (2017), arXiv:1607.04606: a word
as its character n-grams, which share ids by a hash. Collins: "Ranking Algorithms for Named-Entity Extraction" (2002):
the shape of a word.

Deviations: n-grams have three letters, and there are so many at most: those nearest to the ends of the word.
"""

import zlib
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from lightning_meta.core.tokenizer import PAD

FEWEST = 3  # the shape, the word and one n-gram
GRAM = 3


def parts_of(word: str, most: int) -> list[str]:
    """The shape of a word, the word in lower case, and its n-grams with marks at both ends, from the ends inwards."""
    whole = f"<{word.lower()}>"
    grams = [whole[start : start + GRAM] for start in range(len(whole) - GRAM + 1)]
    by_ends = [grams[place // 2 if place % 2 == 0 else -1 - place // 2] for place in range(len(grams))]
    return [f"shape {shape_of(word)}", f"word {whole}", *by_ends[: most - 2]]


def shape_of(word: str) -> str:
    """`Xx` for Nairobi, `X` for UN, `d.d` for 2.5, `-` for a dash: kinds of characters, each run of them once."""
    kinds = ("X" if c.isupper() else "x" if c.isalpha() else "d" if c.isdigit() else c for c in word)
    return "".join(kind for kind, _ in groupby(kinds))


def hashed_parts(word: str, vocabulary: int, most: int) -> list[int]:
    """Ids from 1 to `vocabulary` - 1 of the parts of a word, and `PAD` up to `most`."""
    ids = [1 + zlib.crc32(part.encode()) % (vocabulary - 1) for part in parts_of(word, most)]
    return ids + [PAD] * (most - len(ids))


def encoded_words(sentences: Sequence[Sequence[str]], length: int, vocabulary: int, most: int) -> Tensor:
    """Ids `(sentences, length, most)`; of longer sentences the first words."""
    ids_MLG = torch.full((len(sentences), length, most), PAD)
    known: dict[str, list[int]] = {}
    for row, words in enumerate(sentences):
        for place, word in enumerate(words[:length]):
            if word not in known:
                known[word] = hashed_parts(word, vocabulary, most)
            ids_MLG[row, place] = torch.tensor(known[word])
    return ids_MLG
