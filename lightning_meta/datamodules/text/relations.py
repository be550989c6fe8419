"""Relations between two things that a sentence names. Marks around both say which two are meant.

Han, Zhu, Yu, Wang, Yao, Liu, Sun: "FewRel: A Large-Scale Supervised Few-Shot Relation Classification Dataset with
State-of-the-Art Evaluation" (2018), arXiv:1810.10147. Gao et al.: "FewRel 2.0: Towards More Challenging Few-Shot
Relation Classification" (2019), arXiv:1910.07124: its other domains. Marks as words: Baldini Soares, FitzGerald, Ling,
Kwiatkowski: "Matching the Blanks: Distributional Similarity for Relation Learning" (2019), arXiv:1906.03158.
"""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_meta.core.episode import Split
from lightning_meta.core.tokenizer import WORD, split_words
from lightning_meta.datamodules.class_split import ClassSplit
from lightning_meta.datamodules.text.text_classes import TextClasses
from lightning_meta.errors import ConfigError, DataError, reason

MARKS = ("<h>", "</h>", "<t>", "</t>")  # around the head and the tail of a relation
MARK = re.compile("|".join(MARKS))
PART = re.compile(f"({MARK.pattern})")
Relations = Literal["public", "original"]
SHORTEST = 8


class MarkedTexts(TextClasses):
    """Texts that name two things, with marks around them, by the relation of the one to the other.

    A text is written `<h>Marie Curie</h> was the mother of <t>Irène</t>.`, head and tail in any order. The marks are
    four more words. Of a text with more than `length` words, those around the marks are kept.

    Args:
        file: the path, as of `TextClasses`.
        markers: false leaves the marks out, for comparison: the words are the same.
        length: ids of an example, with those of marks.
        **kwargs: of `TextClasses`.
    """

    def __init__(self, file: str, markers: bool = True, length: int = 40, **kwargs: Any) -> None:
        super().__init__(file, length=length, **kwargs)
        if length < SHORTEST:
            raise ConfigError(f"length={length} leaves no room for four marks and what is in them; take 40, say.")
        self.markers = markers

    def words_of(self, text: str) -> list[str]:
        if sorted(MARK.findall(text)) != sorted(MARKS) or not well_marked(text):
            raise DataError(
                f"the text {shortened_text(text)!r} must mark two things once each, <h>...</h> and <t>...</t>, one "
                "beside the other, with words in both."
            )
        words = [word for part in PART.split(text) for word in ([part] if part in MARKS else split_words(part))]
        kept = around_marks(words, self.length)
        return kept if self.markers else [word for word in kept if word not in MARKS]


def well_marked(text: str) -> bool:
    """Whether each of the two, in any order, is closed before the other begins and has a word."""
    order = "".join(MARK.findall(text))
    inside = [re.split(f"<{side}>|</{side}>", text)[1] for side in "ht"]
    return order in ("<h></h><t></t>", "<t></t><h></h>") and all(WORD.search(part) for part in inside)


def shortened_text(text: str, letters: int = 60) -> str:
    return text if len(text) <= letters else text[:letters] + " ..."


def around_marks(words: list[str], length: int) -> list[str]:
    """So many words in a row, the marks as near to the middle as can be; of marks farther apart, the first ones."""
    places = [place for place, word in enumerate(words) if word in MARKS]
    first, last = places[0], places[-1]
    start = first if last - first >= length else (first + last + 1 - length) // 2
    start = max(min(start, len(words) - length), 0)
    return words[start : start + length]


class FewRel(MarkedTexts):
    """FewRel: sentences with marked entities, by the relation of Wikidata that they state.

    Split, with `relations`:

    - `public`, of what is in the repository. Of the 16 relations of `val_wiki.json` (Wikipedia, 700 sentences each) the
      8 that `val_nyt.json` has not are for test. Of the other 17 of `val_nyt.json` (New York Times, 100 sentences each)
      the last 5 are for validation; the first 12, and the 8 that both have, with the sentences of both, for training.
    - `original`: of the 64 relations of `train_wiki.json` the last 8 are for validation, the others for training; all
      16 of `val_wiki.json` are for test. (The authors validate on these; the relations of their test are not public.)

    Args:
        root: folder for data, with `fewrel/val_wiki.json` and so on.
        relations: `public` or `original`.
        markers: false leaves the marks of the entities out, for comparison.
        length, vocabulary, min_count: see `TextClasses`.
        **kwargs: of `TextClasses`.
    """

    origin = "Copy val_wiki.json and val_nyt.json there from the folder data of https://github.com/thunlp/FewRel."

    def __init__(
        self,
        root: str = "data",
        relations: Relations = "public",
        markers: bool = True,
        length: int = 40,
        vocabulary: int = 10_000,
        min_count: int = 2,
        **kwargs: Any,
    ) -> None:
        if relations not in get_args(Relations):
            raise ConfigError(f"relations={relations!r} must be one of {', '.join(get_args(Relations))}.")
        self.folder, self.relations = Path(root) / "fewrel", relations
        super().__init__(
            str(self.folder), markers, length, text_column="text", class_column="relation", split=ClassSplit(),
            vocabulary=vocabulary, min_count=min_count, **kwargs,
        )  # fmt: skip

    def split_classes(self, names: list[str]) -> dict[Split, list[str]]:
        return {split: list(texts) for split, texts in self._splits.items()}

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        return {name: texts for of_split in self._splits.values() for name, texts in of_split.items()}

    @cached_property
    def _splits(self) -> dict[Split, dict[str, list[str]]]:
        """The sentences of each relation, by split."""
        wiki = self._read("val_wiki.json")
        if self.relations == "original":
            train, test = self._read("train_wiki.json"), wiki
            last = list(train)[-8:]
        else:
            nyt = self._read("val_nyt.json")
            train = {name: texts + wiki.get(name, []) for name, texts in nyt.items()}
            test = {name: texts for name, texts in wiki.items() if name not in nyt}
            last = [name for name in nyt if name not in wiki][-5:]
        return {"train": train, "val": {name: train.pop(name) for name in last}, "test": test}

    def _read(self, name: str) -> dict[str, list[str]]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing. {self.origin}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({reason(error)}). {self.origin}") from error
        try:
            return {relation: [marked(row) for row in rows] for relation, rows in content.items()}
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"{path} is no file of FewRel, relations with sentences as tokens, h and t ({reason(error)}). "
                f"{self.origin}"
            ) from error


def marked(row: Mapping[str, Any]) -> str:
    """A sentence of FewRel as a text with marks around the first mention of its head and of its tail."""
    tokens = list(row["tokens"])
    for side in "ht":
        places = row[side][2][0]
        tokens[places[0]] = f"<{side}> {tokens[places[0]]}"
        tokens[places[-1]] = f"{tokens[places[-1]]} </{side}>"
    return " ".join(tokens)
