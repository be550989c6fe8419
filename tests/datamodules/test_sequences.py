"""Sequences in chunks: which tokens an episode has, scores that come back, entropies, and folders of texts."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.sentences import END, FIRST_WORD
from lightning_meta.datamodules import Chorales, Documents, Topics
from lightning_meta.datamodules.audio.chorales import JSB, draw_chorale
from lightning_meta.datamodules.sequences.chorales import FIRST_PITCH, LOWEST, score_of, tokens_of
from lightning_meta.datamodules.sequences.chunks import START, cut
from lightning_meta.datamodules.sequences.music import transposed
from lightning_meta.datamodules.sequences.topics import EMPTY, SHORTEST
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import topics

EPISODES = 40


def pieces(**overrides: Any) -> Chorales:
    settings: dict[str, Any] = dict(pieces=[6, 2, 3], bars=3, k_shot=3, n_query=2, length=16)
    return Chorales(**(settings | overrides))


def test_a_chunk_predicts_each_of_its_tokens_from_the_one_before() -> None:
    tokens = torch.arange(1, 12)
    x, y = cut(tokens, 4)
    assert x.tolist() == [[START, 1, 2, 3], [4, 5, 6, 7]] and y.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_the_query_follows_the_support_in_one_piece() -> None:
    """Any passage of a piece may be an episode, and none reaches into the next piece."""
    data = pieces()
    data.setup("fit")
    whole = [tokens.tolist() for tokens in data.sequences("train")]
    found = set()
    for number in range(EPISODES):
        support, query = data.dataset("train").__getitems__([number])
        passage = torch.cat([support.y[0], query.y[0]]).flatten().tolist()
        places = [
            (piece, place)
            for piece, tokens in enumerate(whole)
            for place in range(0, len(tokens) - len(passage) + 1, 16)
            if tokens[place : place + len(passage)] == passage
        ]
        assert len(passage) == 80 and places
        piece, place = places[0]
        before = torch.cat([support.x[0], query.x[0]]).flatten().tolist()
        assert before == [*([START] if place == 0 else whole[piece][place - 1 : place]), *passage[:-1]]
        found.add((piece, place))
    assert len({piece for piece, _ in found}) == 6 and len({place for _, place in found}) > 4


def test_scores_come_back_from_their_tokens() -> None:
    for key in episode_keys(3, 0, range(4)):
        score = draw_chorale(key, 5)
        score[3, 1] = -1
        assert np.array_equal(score_of(tokens_of(score)), score)
    tokens = tokens_of(np.array([[LOWEST, -1, 60, 48]]))
    assert tokens.tolist() == [2, 1, 60 - LOWEST + 2, 48 - LOWEST + 2]
    assert score_of(torch.cat([tokens, torch.tensor([0, 5])])).tolist() == [[LOWEST, -1, 60, 48]]
    assert score_of(torch.tensor([0, 1, 2, 3])).tolist() == [[-1, -1, LOWEST, LOWEST + 1]]


def test_each_episode_is_transposed_as_a_whole() -> None:
    """Every key is as likely; rests and the start stay; support and query of an episode are in the same key."""
    plain, moved = pieces(), pieces(transpose=True)
    for data in (plain, moved):
        data.setup("fit")
    episodes = range(1200)
    before, after = (data.dataset("train").__getitems__(episodes) for data in (plain, moved))
    shifts = [(b - a)[a > 1].unique() for a, b in zip(before.support.y, after.support.y, strict=True)]
    assert all(len(shift) == 1 for shift in shifts)
    shift_T = torch.cat(shifts)
    for a, b in zip([*before.support, *before.query], [*after.support, *after.query], strict=True):
        assert torch.equal(b, transposed(a, shift_T[:, None, None], FIRST_PITCH))
        assert torch.equal(a == START, b == START)
    counts = torch.bincount(shift_T + 5, minlength=12)
    assert len(counts) == 12 and counts.min() > 60 and counts.max() < 145


def test_chorales_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / JSB
    file.parent.mkdir()
    score = [[72, 67, 60, 48]] * 20 + [[71, -1, 62, 43]] * 20
    content = {"train": [score, score[:15]], "valid": [score], "test": [score[::-1]]}
    file.write_text(json.dumps(content))
    data = pieces(scores="jsb", root=str(tmp_path))
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert "1 of 2 pieces for train are left out: they have fewer than 5 chunks of 16 tokens" in caplog.text
    assert np.array_equal(score_of(data.sequences("test")[0]), score[::-1])
    assert data.facts("train")["pieces"] == 1
    assert data.describe("train") == "3 support and 2 query chunks of 16 tokens of one of 1 pieces, jsb"
    file.write_text(json.dumps(content | {"test": [[[99, 60, 50, 40]] * 30]}))
    with pytest.raises(DataError, match="the test pieces are 40 to 99, but vocabulary=64 has ids for 28 to 89"):
        pieces(scores="jsb", root=str(tmp_path)).load_source("test")
    file.write_text("[1]")
    with pytest.raises(DataError, match=r"Jsb16thSeparated\.json is not the file of chorales"):
        pieces(scores="jsb", root=str(tmp_path)).load_source("test")
    with pytest.raises(DataError, match=r"nowhere/.*Jsb16thSeparated.json does not exist\. Copy"):
        pieces(scores="jsb", root="nowhere").load_source("test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 30}, "length=30 is no whole number of steps of 4 voices"),
        (
            {"k_shot": 20},
            r"k_shot=20 \+ n_query=2 chunks of length=16 tokens are needed of a piece, but the longest of",
        ),
        ({"n_way": 2}, "a task is one sequence: n_way must be 1, not 2"),
        ({"pieces": [1, 2]}, r"pieces=\[1, 2\] must be three numbers"),
        ({"vocabulary": 40}, "has ids for 28 to 65"),
        ({"bars": 0}, "bars=0 must be at least 1"),
    ],
)
def test_chorales_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        pieces(**settings).setup("fit")


def nats_of(ids: Sequence[int], frequency: np.ndarray, choices: Sequence[tuple[int, int, bool]]) -> float:
    """Minus the log-probability of a document by whoever knows its frequencies, walked word by word."""
    nats, slot = 0.0, 0
    for id in ids:
        if id == END:
            nats -= math.log(EMPTY) * sum(may_be_empty for _, _, may_be_empty in choices[slot:])
            slot = 0
            continue
        word = id - FIRST_WORD
        while True:
            first, count, may_be_empty = choices[slot]
            slot += 1
            if first <= word < first + count:
                nats -= math.log(frequency[word]) + (math.log(1 - EMPTY) if may_be_empty else 0.0)
                break
            assert may_be_empty, "a part that must be there is not"
            nats -= math.log(EMPTY)
    return nats


def test_the_entropy_is_what_whoever_knows_a_document_needs() -> None:
    """By the grammar, word by word; and each document is of the grammar."""
    data = Topics(documents=[1, 1, 12], tokens=3000, focus=1.5)
    found = [
        nats_of(ids.tolist(), frequency, data.grammar.choices) / len(ids)
        for ids, frequency in zip(data.sequences("test"), data.frequencies("test"), strict=True)
    ]
    assert np.mean(found) == pytest.approx(data.entropy("test"), abs=0.015)
    assert all(len(ids) == 3000 for ids in data.sequences("test"))


def test_documents_prefer_other_words_and_all_are_as_focused() -> None:
    data = topics(focus=2.0)
    frequencies = {split: data.frequencies(split) for split in ("train", "val", "test")}
    nouns = slice(0, data.grammar.nouns)
    assert np.allclose(frequencies["train"][:, nouns].sum(1), 1)
    weights = np.sort(frequencies["train"][:, nouns])[:, ::-1]
    rank = np.arange(1, data.grammar.nouns + 1)
    assert np.allclose(weights, (rank**-2.0 / (rank**-2.0).sum()))
    assert len({tuple(row.argsort()) for row in frequencies["train"]}) > 15
    flat = topics(focus=0).frequencies("train")
    assert np.allclose(flat[:, nouns], 1 / data.grammar.nouns)


def test_documents_are_long_enough_for_their_tokens() -> None:
    assert {len(ids) for ids in topics(tokens=61, documents=[500, 1, 1]).sequences("train")} == {61}
    assert sum(not may_be_empty for *_, may_be_empty in topics().grammar.choices) + 1 == SHORTEST


TEXTS = {
    "a.txt": "The cat sat. The cat slept, and the DOG sat!", "b.txt": "a dog sat and the cat slept",
    "more/c.txt": "the dog and the dog and the cat", "d.txt": "the cat and a rare zebra slept on",
}  # fmt: skip


def folder(path: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def documents(root: Path, **overrides: Any) -> Documents:
    settings: dict[str, Any] = dict(k_shot=2, n_query=1, length=2, vocabulary=8, min_count=2)
    return Documents(str(root), **(settings | overrides))


def test_files_are_documents_and_the_vocabulary_is_that_of_training(tmp_path: Path) -> None:
    parts = {"train/a.txt": TEXTS["a.txt"], "val/b.txt": TEXTS["b.txt"], "test/d.txt": TEXTS["d.txt"]}
    data = documents(folder(tmp_path, parts))
    data.setup("fit")
    assert data.tokenizer.words == ["the", "cat", "sat"]
    assert data.sequences("train")[0].tolist() == [2, 3, 4, 2, 3, 1, 1, 2, 1, 4]
    assert data.sequences("test")[0].tolist() == [2, 3, 1, 1, 1, 1, 1, 1]
    support, query = data.dataset("test").__getitems__([0])
    assert (support.y.shape, query.y.shape) == ((1, 2, 2), (1, 1, 2))
    assert data.describe("test") == "2 support and 1 query chunks of 2 tokens of one of 1 documents"


def test_files_without_folders_are_shared_out_always_in_the_same_way(tmp_path: Path) -> None:
    names = {f"{number}.txt": "one two three four five six seven" for number in range(20)}
    root = folder(tmp_path, names)
    first, second = (documents(root, shares=[14, 4, 2]).files for _ in range(2))
    assert first == second and {split: len(files) for split, files in first.items()} == {
        "train": 14,
        "val": 4,
        "test": 2,
    }
    assert len({file for files in first.values() for file in files}) == 20
    assert {split: len(files) for split, files in documents(folder(tmp_path / "few", TEXTS)).files.items()} == {
        "train": 2, "val": 1, "test": 1
    }  # fmt: skip


def test_a_checkpoint_brings_its_vocabulary(tmp_path: Path) -> None:
    root = folder(
        tmp_path, {f"{split}/{name}": text for split in ("train", "val", "test") for name, text in TEXTS.items()}
    )
    data = documents(root)
    data.setup("test")
    before = data.sources["test"].targets.clone()
    data.load_state_dict({"words": ["cat", "the"]})
    assert data.tokenizer.id_of("cat") == 2
    assert data.state_dict() == {"words": ["cat", "the"]}
    assert not torch.equal(data.sources["test"].targets, before)


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has 0 documents \(\*\.txt\), but training, validation and test need one each"
    ):
        documents(tmp_path).setup("fit")
    root = folder(tmp_path / "parts", {"train/a.txt": "x y", "val/b.txt": "x y"})
    (root / "test").mkdir()
    with pytest.raises(DataError, match=r"parts/test has no documents \(\*\.txt\)"):
        documents(root).setup("fit")
    root = folder(tmp_path / "latin", TEXTS)
    (root / "a.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 \(.* at byte 1\); convert the file"):
        documents(root).setup("fit")
    with pytest.raises(ConfigError, match=r"chunks of length=9 tokens are needed of a document, but the longest of 2"):
        documents(folder(tmp_path / "short", TEXTS), length=9).setup("fit")
    with pytest.raises(ConfigError, match=r"leave none of 4 documents for training"):
        documents(tmp_path / "short", shares=[1, 30, 30]).setup("fit")
    with pytest.raises(ConfigError, match=r"shares=\[1, 1\] must be three numbers above 0"):
        documents(tmp_path, shares=[1, 1])
