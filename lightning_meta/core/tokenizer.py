"""From text to token ids: lower-case words and a vocabulary counted on given texts.

Words outside the vocabulary may share ids by a hash, as in Weinberger, Dasgupta, Langford, Smola, Attenberg: "Feature
Hashing for Large Scale Multitask Learning" (2009), arXiv:0902.2206.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

PAD, UNKNOWN, FIRST = 0, 1, 2  # ids of padding, of words outside the vocabulary and of its first word
WORD = re.compile(r"\w+(?:'\w+)*")  # letters and digits, with apostrophes inside: "what's" is one word


def split_words(text: str) -> list[str]:
    """The words of a text in lower case. Punctuation separates them; a typographic apostrophe is a straight one."""
    return WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


Words = Callable[[str], list[str]]


class Tokenizer:
    """Encodes texts as rows of `length` ids: word `i` of the vocabulary is `i + 2`, an unknown word 1, padding 0.

    Args:
        words: the vocabulary.
        length: ids in a row. A longer text is cut off, a shorter one padded at its end.
        buckets: how many ids unknown words share. With any, an unknown word is one of the ids from 2 on, the same in
            every text, and the ids of the vocabulary follow after them: word `i` is `i + 2 + buckets`.
        split: the words of a text.
    """

    def __init__(self, words: Sequence[str], length: int, buckets: int = 0, split: Words = split_words) -> None:
        self.words, self.length, self.buckets, self.split = list(words), length, buckets, split
        self._ids = {word: index for index, word in enumerate(self.words, start=FIRST + buckets)}

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        length: int,
        vocabulary: int,
        min_count: int,
        buckets: int = 0,
        split: Words = split_words,
    ) -> "Tokenizer":
        """Take the most frequent words that occur at least `min_count` times, so many that ids are below `vocabulary`.

        Words of equal frequency come in alphabetical order: the result depends on the texts, not on their order.
        """
        counts = Counter(word for text in texts for word in split(text))
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([word for _, word in frequent[: vocabulary - FIRST - buckets]], length, buckets, split)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Ids `(texts, length)`, int64."""
        ids = torch.full((len(texts), self.length), PAD)
        for row, text in enumerate(texts):
            found = [self.id_of(word) for word in self.split(text)[: self.length]]
            ids[row, : len(found)] = torch.tensor(found)
        return ids

    def id_of(self, word: str) -> int:
        if word in self._ids:
            return self._ids[word]
        return FIRST + zlib.crc32(word.encode()) % self.buckets if self.buckets else UNKNOWN
