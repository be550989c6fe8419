"""Real languages as tasks: sentences of each and their translations into one language, from files."""

import gzip
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sentences import END
from lightning_meta.core.tokenizer import FIRST, PAD, Tokenizer, split_words
from lightning_meta.datamodules.language.translations import TranslationDataModule
from lightning_meta.datamodules.rows import open_rows
from lightning_meta.datamodules.task_bank import TaskBank
from lightning_meta.errors import ConfigError, DataError, require_at_least

log = logging.getLogger(__name__)

Pair = tuple[str, str]  # a sentence and its translation


@dataclass
class LanguageSplit:
    """Which languages are for training, validation and test, as they are called in the names of files: `de`, `fr`."""

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)

    def names(self) -> dict[Split, list[str]]:
        """Of each split. Raises `ConfigError` where a language is named twice."""
        everywhere = [*self.train, *self.val, *self.test]
        if twice := sorted({name for name in everywhere if everywhere.count(name) > 1}):
            raise ConfigError(f"languages are of one split each, but {', '.join(twice)} is named twice.")
        return {"train": self.train, "val": self.val, "test": self.test}


class SentenceBank(TaskBank):
    """Pairs of sentences by language, rows of ids."""

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a task is one language: n_way must be 1, not {shape.n_way}.")


class ParallelText(TranslationDataModule):
    """Languages as tasks. A support set is `k_shot` sentences of one with their translations, drawn at random.

    Sentences of a language `de` and their translations into `en` are in one of two kinds of files, of which there may
    be several:

    - pairs of texts, `train.de` and `train.en`: line n of one is the translation of line n of the other;
    - JSON lines with `{"translation": {"de": ..., "en": ...}}` on each, as lafand-mt has them.

    They stand in `root` or in a folder `de`, `de-en` or `en-de` of it, each as it is or compressed, with `.gz` after
    its name. Sentences without words, those longer than `length` allows, and pairs that are there twice are left out;
    the log says how many.

    Words are in lower case and without punctuation, see `Tokenizer`, and the vocabularies of both sides are counted on
    the languages of meta-training alone. They are saved with a checkpoint.

    Args:
        root: folder of the files.
        target: the language that all are translated into.
        split: which languages are for training, validation and test.
        k_shot, n_query: sentences of a language.
        vocabulary: how many ids each side has at most: padding, unknown, the end and the most frequent words.
        length: ids in a row; a sentence of more words than leave room for the end is left out.
        min_count: how often a word must occur to be in a vocabulary.
        unknown_buckets: how many ids words outside the source vocabulary share by a hash. Nearly all words of a
            language of meta-test are outside.
        **kwargs: of `TranslationDataModule`.
    """

    def __init__(
        self,
        root: str,
        target: str = "en",
        split: LanguageSplit = LanguageSplit(),  # noqa: B008 - never mutated
        n_way: int = 1,
        k_shot: int = 100,
        n_query: int = 30,
        vocabulary: int = 4000,
        length: int = 24,
        min_count: int = 2,
        unknown_buckets: int = 2000,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, length, **kwargs)
        require_at_least(1, min_count=min_count)
        require_at_least(2, length=length)
        require_at_least(0, unknown_buckets=unknown_buckets)
        if vocabulary < unknown_buckets + FIRST + 2:
            raise ConfigError(
                f"vocabulary={vocabulary} leaves no word beside padding, unknown, the end and unknown_buckets="
                f"{unknown_buckets}; take {unknown_buckets + FIRST + 2} at least."
            )
        self.root, self.target, self.split = Path(root), target, split
        self.min_count, self.unknown_buckets = min_count, unknown_buckets
        self.names = split.names()
        if any(target in names for names in self.names.values()):
            raise ConfigError(f"{target} is what others are translated into; leave it out of data.split.")

    def prepare_data(self) -> None:
        """Read all languages. Raises `DataError` if one is missing or unreadable."""
        for split, names in self.names.items():
            for name in names:
                log.info("%s: %d sentences for %s.", name, len(self.pairs(name)), split)

    def load_source(self, split: Split) -> SentenceBank:
        names, shape = self.names[split], self.shapes[split]
        if not names:
            raise ConfigError(f"no languages for {split}; name them: --data.split.{split} [de,fr], say.")
        smallest = min(names, key=lambda name: len(self.pairs(name)))
        needed, there = shape.k_shot + shape.n_query, len(self.pairs(smallest))
        if there < needed:
            raise ConfigError(
                f"{split} episodes need {needed} sentences of every language (k_shot={shape.k_shot} + n_query="
                f"{shape.n_query}), but {smallest} has {there} of up to {self.length - 1} words; lower k_shot or "
                "n_query, raise length, or leave the language out."
            )
        source, target = self.tokenizers
        texts = [list(zip(*self.pairs(name), strict=True)) for name in names]
        return cast(
            SentenceBank,
            SentenceBank.from_tasks([Batch(encoded(source, of), encoded(target, into)) for of, into in texts]),
        )

    def pairs(self, name: str) -> list[Pair]:
        """The sentences of a language with their translations, those that are too long left out."""
        if name not in self._pairs:
            found = list(self._read(name))
            kept = [pair for pair in dict.fromkeys(found) if all(map(self._fits, pair))]
            if left_out := len(found) - len(kept):
                log.info(
                    "%s: %d of %d pairs are left out: one side has no words or more than %d, or they are there twice.",
                    name, left_out, len(found), self.length - 1,
                )  # fmt: skip
            self._pairs[name] = kept
        return self._pairs[name]

    @cached_property
    def _pairs(self) -> dict[str, list[Pair]]:
        return {}

    def _fits(self, text: str) -> bool:
        return 0 < len(split_words(text)) < self.length

    def _read(self, name: str) -> Iterator[Pair]:
        """All pairs of a language, in the order of the names of the files."""
        folders = [self.root / part for part in ("", name, f"{name}-{self.target}", f"{self.target}-{name}")]
        files = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file())
        there = False
        for path in files:
            plain = path.name.removesuffix(".gz")
            if plain.endswith((".json", ".jsonl")):
                pairs = list(self._of_json(path, name))
                there |= bool(pairs)
                yield from pairs
            elif plain.endswith(f".{name}"):
                there = True
                yield from self._of_texts(path, plain.removesuffix(name) + self.target)
        if not there:
            raise DataError(
                f"{self.root} has no sentences of {name} with translations into {self.target}. It must have pairs of "
                f"files such as train.{name} and train.{self.target}, or JSON lines with both, also in a folder "
                f"{name}, {name}-{self.target} or {self.target}-{name}."
            )

    def _of_json(self, path: Path, name: str) -> Iterator[Pair]:
        with open_rows(path) as rows:
            for _, row in rows:
                both = row.get("translation")
                of, into = (both.get(side) if isinstance(both, dict) else None for side in (name, self.target))
                if isinstance(of, str) and isinstance(into, str):
                    yield of, into

    def _of_texts(self, path: Path, partner: str) -> Iterator[Pair]:
        other = next((p for p in (path.with_name(partner), path.with_name(f"{partner}.gz")) if p.is_file()), None)
        if other is None:
            raise DataError(f"{path} has no translations: {partner} is missing beside it.")
        of, into = lines(path), lines(other)
        if len(of) != len(into):
            raise DataError(
                f"{path} has {len(of)} lines, but {other.name} has {len(into)}; line n of one must be the translation "
                "of line n of the other."
            )
        yield from zip(of, into, strict=True)

    @cached_property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Of the source languages and of the target language. They know nothing of the end, which is one id more."""
        if not self.names["train"]:
            raise ConfigError("no languages for train; the vocabulary is counted on them: --data.split.train [de,fr].")
        pairs = [pair for name in self.names["train"] for pair in self.pairs(name)]
        settings = self.length - 1, self.vocabulary - 1, self.min_count
        source = Tokenizer.learn((of for of, _ in pairs), *settings, self.unknown_buckets)
        return source, Tokenizer.learn((into for _, into in pairs), *settings)

    def source_words(self) -> list[str]:
        tokenizer = self.tokenizers[0]
        return written([*(f"#{number}" for number in range(tokenizer.buckets)), *tokenizer.words], self.vocabulary)

    def target_words(self) -> list[str]:
        return written(self.tokenizers[1].words, self.vocabulary)

    def source_ids(self, text: str) -> list[int]:
        return word_ids(self.tokenizers[0], text)

    def target_ids(self, text: str) -> list[int]:
        return word_ids(self.tokenizers[1], text)

    def count_languages(self, split: Split) -> int:
        return len(self.names[split])

    def state_dict(self) -> dict[str, Any]:
        source, target = self.tokenizers
        return {"source": source.words, "target": target.words, "buckets": source.buckets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict == self.state_dict():
            return
        log.info("Vocabularies: those of the checkpoint, in place of those of the files.")
        self.restore(state_dict)
        for split, source in self.sources.items():  # Lightning sets up before it loads
            self.sources[split] = self.load_source(split).to(cast(SentenceBank, source).inputs.device)

    def restore(self, state: dict[str, Any]) -> None:
        source, target = (
            Tokenizer(state[side], self.length - 1, buckets)
            for side, buckets in (("source", state["buckets"]), ("target", 0))
        )
        self.tokenizers = source, target


def word_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Of the words of a sentence, among which the end is one id more than the tokenizer knows of."""
    return [tokenizer.id_of(word) + (tokenizer.id_of(word) >= FIRST) for word in split_words(text)]


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Tensor:
    """Rows of ids with an end after the last word `(texts, length)`."""
    ids_ML = tokenizer.encode(list(texts))
    ids_ML = torch.where(ids_ML >= FIRST, ids_ML + 1, ids_ML)
    words_M1 = (ids_ML != PAD).sum(1, keepdim=True)
    return torch.cat([ids_ML, torch.full_like(words_M1, PAD)], 1).scatter(1, words_M1, END)


def written(words: list[str], vocabulary: int) -> list[str]:
    """A name for each id of a word that a translator may write; those that no word has are `?`."""
    return words + ["?"] * (vocabulary - len(words))


def lines(path: Path) -> list[str]:
    """Of a text in UTF-8, also compressed. Raises `DataError`."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it anew.") from error
    found = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], 1):
        try:
            found.append(line.decode().strip())
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of {path} is not UTF-8 ({error.reason}); convert the file.") from error
    return found
