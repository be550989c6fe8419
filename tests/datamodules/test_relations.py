"""Sentences with two marked things: what is kept of them, and which relations are for what."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_meta.backbones import BagOfWords
from lightning_meta.core.tokenizer import FIRST
from lightning_meta.datamodules import ClassSplit, FewRel, MadeUpRelations, MarkedTexts
from lightning_meta.datamodules.text.made_up_relations import (
    END_OF_HEAD,
    END_OF_TAIL,
    FIRST_FILLER,
    FIRST_NAME,
    FIRST_WORD,
    HEAD,
    LENGTH,
    TAIL,
    VOCABULARY,
    words_of,
)
from lightning_meta.datamodules.text.relations import MARKS, around_marks
from lightning_meta.errors import ConfigError, DataError
from tests.datamodules.test_episodes import ready

WIKI = [f"P{number}" for number in range(1, 17)]
NYT = ["P100", "P3", "P101", "P12", "P15", *(f"P{number}" for number in range(102, 107))]  # three are in both


def row(relation: str, number: int, source: str) -> dict[str, Any]:
    """A sentence of two entities of two words, the tail first where the number is odd."""
    tokens = ["The", f"head{number}", "Hill", "is", relation, ",", "of", f"tail{number}", "Town", source, "."]
    head, tail = [1, 2], [7, 8]
    h, t = (head, tail) if number % 2 == 0 else (tail, head)
    return {"tokens": tokens, "h": ["name", "Q1", [h, [3]]], "t": ["name", "Q2", [t]]}


def write(root: Path, file: str, relations: list[str], source: str, count: int = 4) -> None:
    folder = root / "fewrel"
    folder.mkdir(exist_ok=True)
    content = {relation: [row(relation, number, source) for number in range(count)] for relation in relations}
    (folder / file).write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "val_wiki.json", WIKI, "wiki")
    write(tmp_path, "val_nyt.json", NYT, "nyt")
    return tmp_path


def few_rel(root: Path, **overrides: Any) -> FewRel:
    settings: dict[str, Any] = dict(n_way=2, n_query=2, length=20, min_count=1, vocabulary=300)
    return FewRel(str(root), **(settings | overrides))


def test_relations_of_the_test_are_in_no_other_file(root: Path) -> None:
    data = few_rel(root)
    ready(data)
    assert data.classes["test"] == [name for name in WIKI if name not in ("P3", "P12", "P15")]
    assert data.classes["train"] == ["P100", "P3", "P101", "P12", "P15"]
    assert data.classes["val"] == NYT[5:]
    assert data.source("train").size.tolist() == [4, 8, 4, 8, 8], "a relation of two files has the sentences of both"
    known = {*data.tokenizer.words}
    assert {"p3", "p100", "wiki", "nyt"} <= known and not {"p1", "p16", "p102"} & known


def test_the_original_files_are_split_as_the_authors_have_them(root: Path) -> None:
    with pytest.raises(DataError, match=r"train_wiki.json is missing. Copy val_wiki.json"):
        ready(few_rel(root, relations="original"))
    names = [f"P{number}" for number in range(200, 264)]
    write(root, "train_wiki.json", names, "wiki")
    data = few_rel(root, relations="original")
    ready(data)
    assert data.classes == {"train": names[:-8], "val": names[-8:], "test": WIKI}


@pytest.mark.parametrize("markers", [True, False])
def test_marks_are_around_the_entities_and_nothing_else_depends_on_them(root: Path, markers: bool) -> None:
    data = few_rel(root, markers=markers)
    ready(data)
    words = ["-", "?", *data.tokenizer.words]
    first, second = ([words[i] for i in row if i] for row in data.source("train").inputs[:2].tolist())
    expected = [
        "the <h> head0 hill </h> is p100 of <t> tail0 town </t> nyt",
        "the <t> head1 hill </t> is p100 of <h> tail1 town </h> nyt",
    ]
    for found, text in zip((first, second), expected, strict=True):
        assert found == [word for word in text.split() if markers or word not in MARKS]


def test_bags_of_words_know_no_marks(root: Path) -> None:
    """They are in all texts, so they weigh nothing: the floor is the same with and without."""
    bags = []
    for markers in (True, False):
        data = few_rel(root, markers=markers)
        ready(data)
        bag = BagOfWords(vocabulary=300, length=20)
        bag.fit(data.training_inputs())
        features = bag(data.source("train").inputs)
        bags.append(features @ features.T)
    torch.testing.assert_close(*bags)
    assert bags[0].any()


@pytest.mark.parametrize(
    ("text", "length", "kept"),
    [
        ("a b <h> c </h> d <t> e </t> f g", 12, "a b <h> c </h> d <t> e </t> f g"),
        ("a b c d <h> e </h> <t> f </t> g h i j", 10, "c d <h> e </h> <t> f </t> g h"),
        ("<h> a </h> <t> b </t> c d e f", 8, "<h> a </h> <t> b </t> c d"),
        ("a b c d <h> e </h> <t> f </t>", 8, "c d <h> e </h> <t> f </t>"),
        ("a b <h> c </h> d e f g h <t> i </t>", 8, "<h> c </h> d e f g h"),
    ],
)
def test_long_texts_keep_what_is_around_the_marks(text: str, length: int, kept: str) -> None:
    assert around_marks(text.split(), length) == kept.split()


@pytest.mark.parametrize(
    "text", ["no marks", "<h>a</h> b", "<h>a <t>b</h></t>", "<h></h> <t>a</t>", "<t>a</t> <h>b</h> <h>c</h>"]
)
def test_texts_without_both_marks_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(
        "text,label\n" + "".join(f'"<h>x</h> y <t>z</t> {n}",c{n % 6}\n' for n in range(24)) + f"{text},c1\n"
    )
    data = MarkedTexts(str(file), split=ClassSplit(fractions=(0.34, 0.33, 0.33)), n_way=2, n_query=2)
    with pytest.raises(DataError, match=r"must mark two things once each, <h>...</h> and <t>...</t>"):
        ready(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"P1": [{"tokens": ["a"], "h": []}]}', "is no file of FewRel"),
        ("[1]", "is no file of"),
    ],
)
def test_damaged_files_are_refused(root: Path, content: str, message: str) -> None:
    (root / "fewrel" / "val_nyt.json").write_text(content)
    with pytest.raises(DataError, match=message):
        ready(few_rel(root))


def test_settings_that_cannot_be_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="relations='all' must be one of public, original"):
        few_rel(root, relations="all")
    with pytest.raises(ConfigError, match="length=7 leaves no room for four marks"):
        few_rel(root, length=7)


# ---- made-up relations ----------------------------------------------------------------------------------------------


def test_the_words_between_the_marked_names_are_the_relation() -> None:
    """Read off by a loop over ids; the other clause states another relation."""
    data, seen = MadeUpRelations(n_way=3, n_query=2, sentences=5), set()
    ready(data)
    for split in ("train", "val", "test"):
        bank = data.source(split)
        for first, size in zip(bank.first, bank.size, strict=True):
            pairs = set()
            for ids in bank.inputs[first : first + size].tolist():
                start, stop = ids.index(END_OF_HEAD), ids.index(TAIL)
                assert ids[start - 2] == HEAD and ids[stop + 2] == END_OF_TAIL
                pair = tuple(ids[start + 1 : stop])
                names = [place for place, i in enumerate(ids) if FIRST_NAME <= i < FIRST_FILLER]
                assert len(names) == 4 and start - 1 in names and stop + 1 in names
                other = [i for i in (*ids[:start], *ids[stop:]) if FIRST_WORD <= i < FIRST_NAME]
                assert len(other) == 2 and tuple(other) != pair
                pairs.add(pair)
            assert len(pairs) == 1 and not pairs & seen, "a relation is in one class alone"
            seen |= pairs
    assert len(seen) == 240
    left, right = words_of(torch.arange(240).numpy())
    assert {*zip(left.tolist(), right.tolist(), strict=True)} == seen


def test_without_marks_the_sentences_are_the_same() -> None:
    with_marks, without = (
        MadeUpRelations(n_way=3, n_query=2, sentences=5, markers=markers) for markers in (True, False)
    )
    for data in (with_marks, without):
        ready(data)
    rows = zip(*(data.source("val").inputs.tolist() for data in (with_marks, without)), strict=True)
    marks = range(FIRST, FIRST_WORD)
    for marked, plain in rows:
        assert [i for i in marked if i and i not in marks] == [i for i in plain if i] and not {*marks} & {*plain}
    assert with_marks.source("val").inputs.shape[1] == LENGTH and with_marks.source("val").inputs.max() < VOCABULARY


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="length=9, but there are 82 ids and rows of 19"):
        MadeUpRelations(length=9)
