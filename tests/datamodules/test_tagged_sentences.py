"""Sentences with tags from files: what is read, what is left out, what is refused."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_meta.cli.predict_tags import predict_tags
from lightning_meta.core.tags import NO_WORD
from lightning_meta.core.word_parts import hashed_parts
from lightning_meta.datamodules import LanguageSplit, TaggedSentences
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.language.tagged_sentences import read_tagged
from lightning_meta.errors import ConfigError, DataError
from tests.algorithms.test_token_protonet import maml_tagger, tagger, windows
from tests.datamodules.test_episodes import ready
from tests.modules.test_episodic import trainer

LANGUAGES = ("aa", "bb", "cc")


def block(language: str, number: int) -> str:
    """Sentence `number`, of three words and as many more as its last digit says; a name of two words."""
    rows = [f"{language}{number} O", "Ada B-PER", "Obi I-PER", *(f"w{k} O" for k in range(number % 10))]
    return "\n".join(rows) + "\n\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for language in LANGUAGES:
        (tmp_path / language).mkdir()
        text = "".join(block(language, number) for number in range(6))
        (tmp_path / language / "train.txt").write_text(text)
        rest = "".join(block(language, number) for number in range(5, 9))  # the first is there already
        (tmp_path / language / "test.txt.gz").write_bytes(gzip.compress(rest.encode()))
        (tmp_path / language / "README.md").write_text("no sentences")
    return tmp_path


def tagged(root: Path, **overrides: Any) -> TaggedSentences:
    settings: dict[str, Any] = dict(k_shot=3, n_query=2, length=8, vocabulary=100, word_parts=5)
    settings |= dict(meta_batch_size=2, steps_per_epoch=2, val_episodes=2, test_episodes=2)
    return TaggedSentences(str(root), **(dict(split=LanguageSplit(["aa"], ["bb"], ["cc"])) | settings | overrides))


def test_sentences_of_all_files_of_a_language_are_there_once(root: Path) -> None:
    data = tagged(root)
    data.prepare_data()
    ready(data)
    sentences = data.sentences("cc")
    assert sorted(sentence.words[0] for sentence in sentences) == [f"cc{number}" for number in range(9)]
    bank = data.sources["test"]
    assert bank.inputs.shape == (9, 8, 5) and bank.targets.shape == (9, 8)
    for x, y, sentence in zip(bank.inputs, bank.targets, sentences, strict=True):
        count = min(len(sentence.words), 8)
        assert y.tolist() == [0, 1, 2, *[0] * (count - 3)] + [NO_WORD] * (8 - count)
        assert x[:count].tolist() == [hashed_parts(word, 100, 5) for word in sentence.words[:8]]
        assert not x[count:].any()


def test_an_episode_is_of_one_language_and_its_sentences_differ(root: Path) -> None:
    data = tagged(root, split=LanguageSplit(["aa", "bb"], [], ["cc"]))
    data.test_after_fit = False
    data.sources["train"] = data.load_source("train")
    tasks = data.dataset("train").__getitems__(range(30))
    both = torch.cat([tasks.support.x, tasks.query.x], 1)
    firsts = {name: [hashed_parts(f"{name}{number}", 100, 5) for number in range(9)] for name in ("aa", "bb")}
    seen = set()
    for sentences in both[:, :, 0].tolist():
        name = next(name for name, words in firsts.items() if sentences[0] in words)
        assert all(words in firsts[name] for words in sentences) and len({*map(tuple, sentences)}) == 5
        seen.add(name)
    assert seen == {"aa", "bb"}


@pytest.mark.parametrize("make", [tagger, maml_tagger])
def test_it_trains_validates_and_tests(make: Any, root: Path) -> None:
    fitted = trainer(max_steps=2)
    fitted.fit(make(), datamodule=tagged(root))
    assert 0 <= fitted.test(fitted.lightning_module, tagged(root), verbose=False)[0]["test/span_f1"] <= 1


def test_tags_are_predicted_for_a_file(root: Path, tmp_path: Path) -> None:
    """Words of the support set have its tags, where each word looks at itself; beyond `length` they are outside."""
    query = tmp_path / "query.txt"
    query.write_text("aa0\nAda\nObi\n\n" + "\n".join(f"w{k}" for k in range(10)) + "\n")
    data = tagged(root, vocabulary=4000)
    module = tagger(backbone=windows(vocabulary=4000, width=1, layers=1)).eval()
    facts = dict(predict_tags(module, data, root / "aa/train.txt", query, tmp_path / "out"))
    lines = (tmp_path / "out/predictions.txt").read_text().splitlines()
    assert lines[:4] == ["aa0 O", "Ada B-PER", "Obi I-PER", ""]
    assert [line.split()[0] for line in lines[4:]] == [f"w{k}" for k in range(10)] and lines[-2:] == ["w8 O", "w9 O"]
    assert facts["support"] == "6 sentences, 9 tags" and facts["query"].startswith("2 sentences, ")
    assert facts["cut off"] == "1 sentences after 8 words; what follows is tagged O"
    with pytest.raises(DataError, match=r"nothing is no file; --query"):
        predict_tags(module, data, root / "aa/train.txt", tmp_path / "nothing", tmp_path / "out")


def test_maml_predicts_tags_too(root: Path, tmp_path: Path) -> None:
    data = tagged(root)
    predict_tags(maml_tagger().eval(), data, root / "aa/train.txt", root / "bb/train.txt", tmp_path)
    assert len(read_tagged(tmp_path / "predictions.txt", data.tags)) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "line 2 of .*, 'b', must have a word and one of the tags O, B-PER"),
        ("a B-GPE\n", "line 1 of .* other entities are named by data.entities"),
        ("\n\n", "has no sentences"),
    ],
)
def test_damaged_files_are_refused(root: Path, text: str, message: str) -> None:
    (root / "bb/more.conll").write_text(text)
    with pytest.raises(DataError, match=message):
        tagged(root).prepare_data()


def test_columns_marks_of_documents_and_of_windows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_bytes("\ufeff-DOCSTART- O\r\n\r\nAda\tNNP\tB-PER\r\nruns\tVB\tO\r\n".encode())
    assert read_tagged(file, ["O", "B-PER", "I-PER"]) == [(["Ada", "runs"], [1, 0])]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": LanguageSplit(["aa"], ["aa"], ["cc"])}, "aa is named twice"),
        ({"split": LanguageSplit([], ["bb"], ["cc"])}, r"no languages for train; name them: --data.split.train"),
        ({"split": LanguageSplit(["aa"], ["bb"], ["dd"])}, "dd has no sentences of dd. It must be a folder with files"),
        ({"k_shot": 8}, r"need 10 sentences of every language \(k_shot=8 \+ n_query=2\), but aa has 9"),
        ({"test": ShapeOverride(n_way=3)}, "test episodes have n_way=3, but words have 9 tags"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        ready(tagged(root, **settings))
