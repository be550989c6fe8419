"""A few-shot data set from labelled text: any table of texts with a column that names their classes."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.tokenizer import FIRST, Tokenizer, split_words
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.class_split import (
    ClassSplit,
    check_any,
    check_listed,
    check_split,
    shortened,
    split_names,
)
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.rows import Examples, Row, open_rows, other_delimiter, read_examples
from lightning_meta.datamodules.task_bank import GroupedClassBank
from lightning_meta.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class TextClasses(ClassificationDataModule):
    """Texts with a class each, from one file. Classes may have different numbers of texts.

    The file is a table with named columns: JSON lines (`.jsonl`, `.json`: one object on each line) or `.csv` or `.tsv`
    with the names in the first line; each also compressed, with `.gz` after it. Its classes are split in one of two
    ways:

    - by list: three text files name the classes of each split,
      `--data.split.train train.txt --data.split.val val.txt --data.split.test test.txt`;
    - by fraction: the classes are shuffled by a seed and shared out,
      `--data.split.fractions [0.64,0.16,0.2] --data.split.seed 1`. The log names the classes of each split.

    With `domains` classes are those of domains, such as the intents of banking, and all classes of an episode are of
    one domain, drawn at random. Then domains are listed or shared out, whole, so that none is in two splits.

    An example is a row of `length` token ids, see `Tokenizer`. The vocabulary is counted on the texts of the
    meta-training classes alone: words of the test classes are not known before. It is saved with a checkpoint, and a
    checkpoint that is loaded brings its own, so that an id stays the word that it was in training, though the file
    or its split may have changed. (Lightning finds it by the name of the datamodule's class: between data sets of
    different classes, such as CLINC150 and HuffPost, it is not passed on.)

    Args:
        file: the path. Where it is missing, the same path with `.gz` is taken.
        text_column: name of the column of texts.
        class_column: name of the column of classes; whole numbers are names too.
        split: which classes are for training, validation and test. A relative path starts at the folder of the file.
        length: ids of an example; longer texts are cut off there.
        vocabulary: how many ids there are at most: padding, unknown and the most frequent words. On the command line
            the backbone follows it, as it follows `length`.
        min_count: how often a word must occur to be in the vocabulary. With 1 no word of meta-training is unknown, and
            what stands for unknown words is never trained.
        unknown_buckets: how many of the ids are for words outside the vocabulary, which a hash shares out among them.
            Without, all have the same id. With, the new words of a task can be told apart, which helps where single
            words name the class.
        domains: a JSON file with the classes of each domain, `{"banking": ["balance", "transfer"], ...}`. A relative
            path starts at the folder of the file. None: an episode has any classes of its split.
        **kwargs: of `ClassificationDataModule`.
    """

    origin = ""  # a sentence that says where the file can be had
    domain_origin = ""  # and where that of the domains

    def __init__(
        self,
        file: str,
        text_column: str = "text",
        class_column: str = "label",
        split: ClassSplit = ClassSplit(),  # noqa: B008 - never mutated
        length: int = 20,
        vocabulary: int = 10_000,
        min_count: int = 2,
        unknown_buckets: int = 0,
        domains: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.file, self.text_column, self.class_column, self.class_split = Path(file), text_column, class_column, split
        self.length, self.vocabulary, self.min_count = length, vocabulary, min_count
        self.unknown_buckets = unknown_buckets
        self.domain_file = None if domains is None else self.file.parent / domains
        if domains is not None and (self.labels == "fixed" or self.train_classes is not None or self.variable):
            raise ConfigError(
                f"domains={domains}: episodes with classes of one domain have shuffled labels, all classes of training "
                "and one shape; leave labels, train_classes and variable out."
            )
        if length < 1 or min_count < 1:
            raise ConfigError(f"length={length} and min_count={min_count} must be at least 1.")
        if unknown_buckets < 0:
            raise ConfigError(f"unknown_buckets={unknown_buckets} must not be negative.")
        if vocabulary <= FIRST + unknown_buckets:
            raise ConfigError(
                f"vocabulary={vocabulary} leaves no word beside padding and unknown (unknown_buckets="
                f"{unknown_buckets}); take {FIRST + unknown_buckets + 1} at least."
            )
        check_split(split)

    def prepare_data(self) -> None:
        """Read the file. Raises `DataError` if it is missing or unreadable."""
        for split, names in self.classes.items():
            texts = sum(len(self.texts[name]) for name in names)
            log.info("%s: %d texts of %d classes for %s.", self.file, texts, len(names), split)
            if self.class_split.fractions:
                log.info("The %s for %s: %s.", self.shared_out, split, ", ".join(self.parts_of_split[split]))
        log.info("Vocabulary: %d words of the training classes.", len(self.tokenizer.words))

    def load_source(self, split: Split) -> ClassBank:
        names, shape = self.classes[split], self.shapes[split]
        check_any(names, split, self.class_split, self.file)
        smallest = min(names, key=lambda name: len(self.texts[name]))
        if len(self.texts[smallest]) < shape.k_shot + shape.n_query:
            raise ConfigError(
                f"{split} episodes need {shape.k_shot + shape.n_query} texts of every class (k_shot={shape.k_shot} + "
                f"n_query={shape.n_query}), but class {smallest} of {self.file} has {len(self.texts[smallest])}; lower "
                "k_shot or n_query, add texts, or leave the class out."
            )
        rows = {name: self.tokenizer.encode(self.texts[name]) for name in names}
        if self.domains is None:
            return ClassBank.from_ragged([rows[name] for name in names])
        domains = [self.domains[domain] for domain in self.parts_of_split[split]]
        return GroupedClassBank.from_tasks([[rows[name] for name in classes] for classes in domains])

    def split_classes(self, names: list[str]) -> dict[Split, list[str]]:
        """Which of all classes `names` (or domains) each split has. Raises `ConfigError` or `DataError`."""
        return split_names(names, self.class_split, self.file, self.shared_out)

    @property
    def shared_out(self) -> str:
        """What splits have that no other split has."""
        return "classes" if self.domain_file is None else "domains"

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """All texts of the file, by class, in the order of the file."""
        path = self.file
        if not path.exists():
            path = path.with_name(f"{path.name}.gz")
        if not path.exists():
            raise DataError(
                f"{self.file} is missing (and so is {path}). It must be a table of texts, JSON lines, CSV or TSV, with "
                f"the columns {self.text_column!r} and {self.class_column!r}. {self.origin}".rstrip()
            )
        texts: defaultdict[str, list[str]] = defaultdict(list)
        for text, name in read_table(path, self.text_column, self.class_column):
            texts[name].append(text)
        if not texts:
            raise DataError(
                f"{path} has no rows ({path.stat().st_size} bytes). It must be a table of texts with the columns "
                f"{self.text_column!r} and {self.class_column!r}."
            )
        return dict(texts)

    @cached_property
    def classes(self) -> dict[Split, list[str]]:
        """The names of the classes of each split."""
        found, domains = self.parts_of_split, self.domains
        if domains is None:
            return found
        return {split: [name for part in parts for name in domains[part]] for split, parts in found.items()}

    @cached_property
    def parts_of_split(self) -> dict[Split, list[str]]:
        """The names of the classes of each split, or of its domains."""
        names, source, one = self.texts, self.file, "a class"
        if self.domains is not None and self.domain_file is not None:
            names, source, one = self.domains, self.domain_file, "a domain"
        found = self.split_classes(sorted(names))
        if not self.class_split.fractions:
            check_listed(found, names, source, one, self.shared_out)
        return found

    @cached_property
    def domains(self) -> dict[str, list[str]] | None:
        """The classes of each domain, sorted; None: there are no domains."""
        return None if self.domain_file is None else read_domains(self.domain_file, self.texts, self.domain_origin)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        known = (text for name in self.classes["train"] for text in self.texts[name])
        return Tokenizer.learn(known, self.length, self.vocabulary, self.min_count, self.unknown_buckets, self.words_of)

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | ({} if self.domains is None else {"domains": len(self.parts_of_split[split])})

    def describe(self, split: Split) -> str:
        one = "" if self.domains is None else f", classes of one of {len(self.parts_of_split[split])} domains"
        return super().describe(split) + one

    def trained_on(self) -> str:
        return super().trained_on() + ("" if self.domain_file is None else " (classes of one domain)")

    def words_of(self, text: str) -> list[str]:
        """The words of a text."""
        return split_words(text)

    def state_dict(self) -> dict[str, Any]:
        return {"words": self.tokenizer.words, "buckets": self.tokenizer.buckets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        words, buckets = state_dict["words"], state_dict["buckets"]
        if (words, buckets) == (self.tokenizer.words, self.tokenizer.buckets):
            return
        log.info("Vocabulary: %d words of the checkpoint, in place of those of the file.", len(words))
        self.restore(state_dict)
        # Lightning sets up before it loads.
        for split, source in self.sources.items():
            self.sources[split] = self.load_split(split).to(cast(ClassBank, source).inputs.device)

    def restore(self, state: dict[str, Any]) -> None:
        self.tokenizer = Tokenizer(state["words"], self.length, state["buckets"], self.words_of)

    def read_examples(self, path: Path, labelled: bool) -> Examples:
        def encode(rows: list[Row]) -> Tensor:
            return self.tokenizer.encode([str(row[self.text_column]) for row in rows])

        return read_examples(path, [self.text_column], self.class_column if labelled else None, encode)


def read_table(path: Path, text_column: str, class_column: str) -> Iterator[tuple[str, str]]:
    """The text and the class of each row of a file.

    Raises:
        DataError: the file cannot be read, or a row has no text or no class.
        ConfigError: the suffix of the file is not known.
    """
    with open_rows(path) as rows:
        for number, row in rows:
            text, name = row.get(text_column), row.get(class_column)
            if not isinstance(text, str) or not isinstance(name, str | int) or name == "":
                columns = [str(key) for key in row]
                remedy = other_delimiter(path, columns, {text_column, class_column}) or (
                    "Name others with --data.text_column and --data.class_column"
                )
                raise ValueError(
                    f"line {number} must have a text in the column {text_column!r} and a class in "
                    f"{class_column!r}; its columns are {shortened(columns)}. {remedy}"
                )
            yield text, str(name)


def read_domains(path: Path, classes: Collection[str], origin: str = "") -> dict[str, list[str]]:
    """The classes of each domain. Raises `DataError` unless each of `classes` is in one, and no other is."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = origin or "--data.domains must be a JSON file, with its path from the table of texts."
        raise DataError(f"{path}, the domains, cannot be read ({error}). {remedy}") from error
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in lists):
        raise DataError(f'{path} must have the classes of each domain: {{"banking": ["balance", "transfer"], ...}}.')
    count = Counter(name for names in found.values() for name in names)
    if twice := sorted(name for name, times in count.items() if times > 1):
        raise DataError(f"{path} has {len(twice)} classes twice: {shortened(twice)}. Keep each in one domain.")
    if missing := sorted({*classes} - {*count}):
        lacking = f"{len(missing)} of {len(classes)} classes: {shortened(missing)}"
        raise DataError(f"{path} has no domain for {lacking}. Add each to one.")
    if others := sorted({*count} - {*classes}):
        raise DataError(f"{path} has {len(others)} classes that no text has: {shortened(others)}. Take them out.")
    return {domain: sorted(names) for domain, names in found.items()}


class CLINC150(TextClasses):
    """CLINC150: 150 intents of queries to a voice assistant, 150 queries each; 50 / 50 / 50 classes.

    Larson et al.: "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction" (2019),
    arXiv:1909.02027, without the queries that are out of scope. The class splits are the five that came with Dopierre,
    Gravier, Logerais: "ProtAugment: Intent Detection Meta-Learning through Unsupervised Diverse Paraphrasing" (2021),
    arXiv:2105.12995.

    Args:
        root: folder for data, with `clinc150/full.jsonl` (or `.gz`) and `clinc150/few_shot/01/labels.train.txt` and so
            on (`valid` and `test`, 01 to 05).
        fold: which of the splits, 1 to 5.
        length, vocabulary, min_count: see `TextClasses`.
        **kwargs: of `TextClasses`.
    """

    origin = "Copy full.jsonl and few_shot/ there from the folder data/OOS of https://github.com/tdopierre/ProtAugment."

    def __init__(
        self,
        root: str = "data",
        fold: int = 1,
        length: int = 20,
        vocabulary: int = 2_000,
        min_count: int = 2,
        **kwargs: Any,
    ) -> None:
        if not 1 <= fold <= 5:
            raise ConfigError(f"fold={fold}: CLINC150 has the class splits 1 to 5.")
        lists = f"few_shot/{fold:02}/labels."
        split = ClassSplit(train=f"{lists}train.txt", val=f"{lists}valid.txt", test=f"{lists}test.txt")
        file = str(Path(root) / "clinc150" / "full.jsonl")
        super().__init__(file, "sentence", "label", split, length, vocabulary, min_count, **kwargs)

    def split_classes(self, names: list[str]) -> dict[Split, list[str]]:
        folder = self.file.parent / "few_shot"
        if not folder.is_dir():
            raise DataError(f"the folder {folder} with the class splits is missing. {self.origin}")
        return super().split_classes(names)


class CLINC150Domains(TextClasses):
    """The intents of CLINC150 by domain: an episode is about banking, or travel, as a dialogue system meets it.

    There are ten domains of 15 intents, see `CLINC150`; 5 / 2 / 3 of them, shared out whole by a shuffle of our own.

    Args:
        root: folder for data, with `clinc150/full.jsonl` (or `.gz`) and `clinc150/domains.json`.
        fold: seed of the shuffle.
        length, vocabulary, min_count: see `TextClasses`.
        **kwargs: of `TextClasses`.
    """

    origin = "Copy it there from the folder data/OOS of https://github.com/tdopierre/ProtAugment."
    domain_origin = "Copy domains.json there from the folder data of https://github.com/clinc/oos-eval."

    def __init__(
        self,
        root: str = "data",
        fold: int = 1,
        length: int = 20,
        vocabulary: int = 2_000,
        min_count: int = 2,
        **kwargs: Any,
    ) -> None:
        file = str(Path(root) / "clinc150" / "full.jsonl")
        split = ClassSplit(fractions=(0.5, 0.2, 0.3), seed=fold)
        domains = "domains.json"
        super().__init__(file, "sentence", "label", split, length, vocabulary, min_count, domains=domains, **kwargs)


class HuffPost(TextClasses):
    """HuffPost: 41 sections of a newspaper, 900 headlines each; 20 / 5 / 16 classes.

    Bao, Wu, Chang, Barzilay: "Few-shot Text Classification with Distributional Signatures" (2020), arXiv:1908.06039,
    who chose the headlines from a collection by Misra and split the classes.

    Args:
        root: folder for data, with `huffpost/huffpost.json` (or `.gz`).
        length, vocabulary, min_count: see `TextClasses`.
        **kwargs: of `TextClasses`.
    """

    origin = "Copy data/huffpost.json there from https://github.com/ws-jiang/MetaPrompter_public."

    def __init__(
        self, root: str = "data", length: int = 20, vocabulary: int = 10_000, min_count: int = 2, **kwargs: Any
    ) -> None:
        file = str(Path(root) / "huffpost" / "huffpost.json")
        super().__init__(file, "raw", "label", ClassSplit(), length, vocabulary, min_count, **kwargs)

    def split_classes(self, names: list[str]) -> dict[Split, list[str]]:
        """Classes 0 to 19, 20 to 24 and 25 to 40; the numbers are the file's."""
        classes = [str(number) for number in range(41)]
        return {"train": classes[:20], "val": classes[20:25], "test": classes[25:]}
