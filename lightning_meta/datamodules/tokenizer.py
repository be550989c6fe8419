"""From text to token ids: lower-case words and a vocabulary counted on given texts."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, UNKNOWN, FIRST = 0, 1, 2  # ids of padding, of words outside the vocabulary and of its first word
WORD = re.compile(r"\w+(?:'\w+)*")  # letters and digits, with apostrophes inside: "what's" is one word


class Tokenizer:
    """Encodes texts as rows of `length` ids: word `i` of the vocabulary is `i + 2`, an unknown word 1, padding 0.

    Args:
        words: the vocabulary.
        length: ids in a row. A longer text is cut off, a shorter one padded at its end.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words, self.length = list(words), length
        self._ids = {word: index for index, word in enumerate(self.words, start=FIRST)}

    @classmethod
    def learn(cls, texts: Iterable[str], length: int, vocabulary: int, min_count: int) -> "Tokenizer":
        """Take the most frequent words that occur at least `min_count` times, so many that ids are below `vocabulary`.

        Words of equal frequency come in alphabetical order: the result depends on the texts, not on their order.
        """
        counts = Counter(word for text in texts for word in split_words(text))
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([word for _, word in frequent[: vocabulary - FIRST]], length)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Ids `(texts, length)`, int64."""
        ids = torch.full((len(texts), self.length), PAD)
        for row, text in enumerate(texts):
            found = [self._ids.get(word, UNKNOWN) for word in split_words(text)[: self.length]]
            ids[row, : len(found)] = torch.tensor(found)
        return ids


def split_words(text: str) -> list[str]:
    """The words of a text in lower case. Punctuation separates them; a typographic apostrophe is a straight one."""
    return WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
