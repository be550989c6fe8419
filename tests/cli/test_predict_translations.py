"""Sentences of a user's, translated: as the test does it, from files of rows; others are refused by their number."""

import csv
from pathlib import Path

import pytest
import torch

from lightning_meta.algorithms import MetaNMT
from lightning_meta.cli.predict_translations import predict_translations
from lightning_meta.core.sentences import words_of
from lightning_meta.datamodules import Ciphers, LanguageSplit, ParallelText
from lightning_meta.errors import DataError
from tests.algorithms.test_meta_nmt import nmt, translator
from tests.datamodules.test_parallel_text import FEW, root, text  # noqa: F401 - a fixture


def write(path: Path, **columns: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def ciphers() -> Ciphers:
    return Ciphers(k_shot=4, n_query=3, test_episodes=1)


def translating() -> MetaNMT:
    torch.manual_seed(0)
    return nmt(backbone=translator(vocabulary=ciphers().vocabulary)).eval()


def test_files_are_translated_as_a_test_episode_is(tmp_path: Path) -> None:
    data, module = ciphers(), translating()
    data.setup("test")
    support, query = data.dataset("test")[0]
    source, target = data.source_words(), data.target_words()
    known = write(tmp_path / "known.csv", sentence=words_of(support.x, source), translation=words_of(support.y, target))
    asked = write(tmp_path / "asked.csv", sentence=words_of(query.x, source), number=["a", "b", "c"])
    rows, facts = predict_translations(module, data, known, asked)
    with torch.no_grad():
        expected = words_of(module.query_loss(module.adapt(support), query).preds, target)
    assert [row["predicted"] for row in rows] == expected
    assert [row["number"] for row in rows] == ["a", "b", "c"]
    assert dict(facts) == {"support": "4 sentences with their translations", "query": "3 sentences"}


def test_words_that_training_has_not_seen_are_told_and_bad_sentences_refused(tmp_path: Path) -> None:
    data, word = ciphers(), ciphers().source_words()[0]
    known = write(tmp_path / "known.csv", sentence=[word], translation=["dog"])
    asked = write(tmp_path / "asked.csv", sentence=[f"{word} xyz"])
    note = dict(predict_translations(translating(), data, known, asked)[1])["note"]
    assert note == f"1 of 2 words of {asked} are not in the vocabulary of training"
    for sentence, count in ((" ".join([word] * 9), 9), (" ", 0)):
        asked = write(tmp_path / "asked.csv", sentence=[word, sentence])
        with pytest.raises(DataError, match=f"sentence 2 of .*asked.csv has {count} words, .* of 1 to 8"):
            predict_translations(translating(), data, known, asked)
    with pytest.raises(DataError, match="has no column 'translation'"):
        predict_translations(translating(), data, asked, asked)


def test_sentences_of_a_user_become_the_ids_of_the_training_data(root: Path) -> None:  # noqa: F811
    """With the vocabularies of the checkpoint, though the files of training are gone."""
    data = text(root)
    data.setup("fit")
    pairs, bank = data.pairs("de"), data.load_source("train")
    elsewhere = ParallelText("nowhere", **FEW, split=LanguageSplit(["de"], ["fr"], ["it"]))
    elsewhere.restore(data.state_dict())
    assert torch.equal(elsewhere.rows_of((elsewhere.source_ids(of) for of, _ in pairs), root), bank.inputs)
    assert torch.equal(elsewhere.rows_of((elsewhere.target_ids(into) for _, into in pairs), root), bank.targets)
