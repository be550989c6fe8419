"""Real languages as tasks: sentences of each with a tag for every word, from files."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.tags import NO_WORD
from lightning_meta.core.word_parts import encoded_words
from lightning_meta.datamodules.language.parallel_text import LanguageSplit, lines
from lightning_meta.datamodules.language.tagging import ENTITIES, TaggingDataModule
from lightning_meta.datamodules.task_bank import TaskBank
from lightning_meta.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ENDINGS = (".txt", ".conll", ".bio", ".tsv")
BETWEEN_DOCUMENTS = "-DOCSTART-"


class Tagged(NamedTuple):
    """Words of a sentence, and their tags as numbers."""

    words: list[str]
    tags: list[int]


class TaggedBank(TaskBank):
    """Sentences by language, with the tags of their words."""

    def check(self, shape: EpisodeShape) -> None:
        """How many tags and sentences there are, the data module has seen to."""


class TaggedSentences(TaggingDataModule):
    """Languages as tasks. A support set is `k_shot` sentences of one, drawn at random, with their tags.

    The sentences of a language are those of all files in the folder `root/<language>` that end in `.txt`, `.conll`,
    `.bio` or `.tsv`, each also compressed, with `.gz` after it: a word and its tag on each line, parted by a space or a
    tab (of more columns the first and the last), an empty line after each sentence. Tags are `O`, `B-PER`, `I-PER` and
    so on. Sentences that are there twice are left out, longer ones are cut off; the log says how many.

    Args:
        root: folder of the languages.
        split: which languages are for training, validation and test.
        n_way, k_shot, n_query, entities, vocabulary, length, word_parts: of `TaggingDataModule`.
        **kwargs: of `TaggingDataModule`.
    """

    origin = ""  # a sentence that says where the files can be had

    def __init__(
        self,
        root: str,
        split: LanguageSplit = LanguageSplit(),  # noqa: B008 - never mutated
        n_way: int = 9,
        k_shot: int = 16,
        n_query: int = 30,
        entities: Sequence[str] = ENTITIES,
        vocabulary: int = 5000,
        length: int = 32,
        word_parts: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, entities, vocabulary, length, word_parts, **kwargs)
        self.root = Path(root)
        self.names = split.names()

    def prepare_data(self) -> None:
        """Read all languages. Raises `DataError` if one is missing or unreadable."""
        for split, names in self.names.items():
            for name in names:
                found = self.sentences(name)
                cut = sum(len(sentence.words) > self.length for sentence in found)
                log.info("%s: %d sentences for %s, %d of them cut off.", name, len(found), split, cut)

    def load_source(self, split: Split) -> TaggedBank:
        names, shape = self.names[split], self.shapes[split]
        if not names:
            raise ConfigError(f"no languages for {split}; name them: --data.split.{split} [hau,ibo], say.")
        smallest = min(names, key=lambda name: len(self.sentences(name)))
        needed, there = shape.k_shot + shape.n_query, len(self.sentences(smallest))
        if there < needed:
            raise ConfigError(
                f"{split} episodes need {needed} sentences of every language (k_shot={shape.k_shot} + n_query="
                f"{shape.n_query}), but {smallest} has {there}; lower k_shot or n_query, or leave the language out."
            )
        bank = TaggedBank.from_tasks([self.encode(self.sentences(name)) for name in names])
        assert isinstance(bank, TaggedBank)
        return bank

    def encode(self, sentences: Sequence[Tagged]) -> Batch:
        """Parts of words `(sentences, length, parts)` and tags `(sentences, length)`."""
        x_MLG = encoded_words([sentence.words for sentence in sentences], self.length, self.vocabulary, self.word_parts)
        y_ML: Tensor = torch.full(x_MLG.shape[:2], NO_WORD)
        for row, sentence in enumerate(sentences):
            y_ML[row, : len(sentence.tags)] = torch.tensor(sentence.tags[: self.length])
        return Batch(x_MLG, y_ML)

    def sentences(self, name: str) -> list[Tagged]:
        """Of a language, each once."""
        if name not in self._sentences:
            folder = self.root / name
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            kept = [path for path in files if path.name.removesuffix(".gz").endswith(ENDINGS)]
            if not kept:
                raise DataError(
                    f"{folder} has no sentences of {name}. It must be a folder with files such as train.txt, a word "
                    f"and its tag on each line and an empty line after each sentence. {self.origin}".rstrip()
                )
            found = [sentence for path in kept for sentence in read_tagged(path, self.tags)]
            self._sentences[name] = list({tuple(sentence.words): sentence for sentence in found}.values())
        return self._sentences[name]

    @cached_property
    def _sentences(self) -> dict[str, list[Tagged]]:
        return {}

    def count_languages(self, split: Split) -> int:
        return len(self.names[split])


class MasakhaNER(TaggedSentences):
    """MasakhaNER: news in 10 African languages, with the names of persons, organisations and places, and dates.

    Adelani et al.: "MasakhaNER: Named Entity Recognition for African Languages" (2021), arXiv:2103.11811. Luo and Wolof
    are for test, Luganda for validation, the seven others for training.

    Args:
        root: folder for data, with `masakhaner/hau/train.txt` and so on.
        split: see `TaggedSentences`.
        **kwargs: of `TaggedSentences`.
    """

    origin = "Copy the folders of data/ there from https://github.com/masakhane-io/masakhane-ner."

    def __init__(
        self,
        root: str = "data",
        split: LanguageSplit = LanguageSplit(  # noqa: B008 - never mutated
            ["amh", "hau", "ibo", "kin", "pcm", "swa", "yor"], ["lug"], ["luo", "wol"]
        ),
        **kwargs: Any,
    ) -> None:
        super().__init__(str(Path(root) / "masakhaner"), split, **kwargs)


def read_tagged(path: Path, tags: Sequence[str], labelled: bool = True) -> list[Tagged]:
    """The sentences of a file; where it is not `labelled`, words may stand alone.

    Raises:
        DataError: the file cannot be read, or a line has no tag, or another one than those of `tags`.
    """
    numbers, found = {name: number for number, name in enumerate(tags)}, [Tagged([], [])]
    for number, line in enumerate(lines(path), start=1):
        columns = line.removeprefix("\ufeff").split()
        if not columns or columns[0] == BETWEEN_DOCUMENTS:
            found.append(Tagged([], []))
            continue
        if labelled and (len(columns) < 2 or columns[-1] not in numbers):
            raise DataError(
                f"line {number} of {path}, {line[:60]!r}, must have a word and one of the tags {', '.join(tags)}; "
                "other entities are named by data.entities."
            )
        found[-1].words.append(columns[0])
        found[-1].tags.append(numbers.get(columns[-1], 0))
    sentences = [sentence for sentence in found if sentence.words]
    if not sentences:
        raise DataError(
            f"{path} has no sentences; it must have a word on each line, an empty line after each sentence."
        )
    return sentences
