"""Sentences from files: what is a pair, what is left out, what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_meta.core.sentences import END, words_of
from lightning_meta.datamodules import LanguageSplit, ParallelText
from lightning_meta.errors import ConfigError, DataError
from tests.algorithms.test_meta_nmt import nmt, translator

WORDS = ("eins zwei drei vier", "un deux trois quatre", "uno due tre quattro")
NUMBERS = "one two three four"
FEW: dict[str, Any] = dict(
    k_shot=4, n_query=2, length=6, vocabulary=20, unknown_buckets=4, min_count=1, meta_batch_size=2, steps_per_epoch=2,
    val_episodes=2, test_episodes=2,
)  # fmt: skip


def sentences(words: str) -> list[str]:
    """Twelve, of two words or three each."""
    own = words.split()
    return [f"{a} {b}".capitalize() + "." for a in own for b in own if a != b]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """German beside English; French in a folder, compressed; Italian in JSON lines."""
    (tmp_path / "train.de").write_text("\n".join(sentences(WORDS[0])) + "\n")
    (tmp_path / "train.en").write_text("\n".join(sentences(NUMBERS)) + "\n")
    (tmp_path / "fr-en").mkdir()
    for name, words in (("fr", WORDS[1]), ("en", NUMBERS)):
        (tmp_path / f"fr-en/all.{name}.gz").write_bytes(gzip.compress("\n".join(sentences(words)).encode()))
    (tmp_path / "en-it").mkdir()
    rows = [{"translation": dict(it=a, en=b)} for a, b in zip(sentences(WORDS[2]), sentences(NUMBERS), strict=True)]
    (tmp_path / "en-it/train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def text(root: Path, **options: Any) -> ParallelText:
    return ParallelText(str(root), **(FEW | {"split": LanguageSplit(["de"], ["fr"], ["it"])} | options))


def test_line_n_is_the_translation_of_line_n(root: Path) -> None:
    data = text(root)
    data.setup("fit")
    for split, words in (("train", WORDS[0]), ("val", WORDS[1]), ("test", WORDS[2])):
        (own, english) = data.pairs(data.names[split][0]), dict(zip(words.split(), NUMBERS.split(), strict=True))
        assert len(own) == 12
        for sentence, translation in own:
            of, into = ([w.lower() for w in t.strip(".").split()] for t in (sentence, translation))
            assert [english[word] for word in of] == into
    tasks = data.dataset("train").__getitems__(range(3))
    written = dict(zip(sentences(WORDS[0]), sentences(NUMBERS), strict=True))
    plain = {a.lower().strip("."): b.lower().strip(".") for a, b in written.items()}
    for part in tasks:
        of, into = (words_of(ids.flatten(0, 1), names) for ids, names in zip(
            part, (data.source_words(), data.target_words()), strict=True
        ))  # fmt: skip
        assert [plain[sentence] for sentence in of] == into
        assert ((part.x == END).sum(-1) == 1).all()
    together = torch.cat([tasks.support.x, tasks.query.x], 1)
    assert all(len(rows.unique(dim=0)) == 6 for rows in together)


def test_words_of_the_languages_of_test_are_not_known_but_told_apart(root: Path) -> None:
    data = text(root)
    data.setup("fit")
    assert set(data.tokenizers[0].words) == set(WORDS[0].split())
    assert set(data.tokenizers[1].words) == set(NUMBERS.split())
    ids = data.dataset("test")[0].query.x.unique().tolist()
    assert set(ids) <= {0, END, 3, 4, 5, 6}, "padding, the end and four buckets"
    assert len(ids) > 3
    assert len(data.source_words()) == len(data.target_words()) == 20


def test_empty_long_and_repeated_sentences_are_left_out_and_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "test.de").write_text("\nzwei\n" + "eins " * 9 + "\n" + sentences(WORDS[0])[0] + "\n")
    (root / "test.en").write_text("one\n...\n" + "one " * 9 + "\n" + sentences(NUMBERS)[0] + "\n")
    with caplog.at_level("INFO"):
        assert len(text(root).pairs("de")) == 12
    assert "de: 4 of 16 pairs are left out" in caplog.text


def test_a_checkpoint_brings_its_vocabularies(root: Path, tmp_path: Path) -> None:
    data = text(root)
    trainer = pl.Trainer(
        max_steps=1, logger=False, accelerator="cpu", enable_progress_bar=False, inference_mode=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = nmt(backbone=translator(vocabulary=20, length=6))
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(root / "it.ckpt")
    other = text(root, split=LanguageSplit(["fr"], ["de"], ["it"]))
    trainer.test(module, datamodule=other, ckpt_path=str(root / "it.ckpt"), verbose=False, weights_only=True)
    assert other.tokenizers[0].words == data.tokenizers[0].words
    same, query = data, other.dataset("test")[0].query
    same.setup("test")
    assert torch.equal(same.dataset("test")[0].query.x, query.x)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.en", b"one\ntwo\n", r"train.de has 12 lines, but train.en has 2; line n of one"),
        ("train.de", b"eins\n\xff\xfe\n", r"line 2 of .*train.de is not UTF-8 \(invalid start byte\)"),
        ("more.de", b"eins\n", r"more.de has no translations: more.en is missing"),
        ("train.de.gz", b"eins\n", r"train.de.gz cannot be read"),
    ],
)
def test_broken_files_are_refused_by_name(root: Path, name: str, content: bytes, message: str) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        text(root).prepare_data()
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": LanguageSplit(["de"], ["pl"], ["it"])}, "no sentences of pl with translations into en.*train.pl"),
        ({"split": LanguageSplit(["de"], [], ["it"])}, r"no languages for val.*--data.split.val \[de,fr\]"),
        ({"split": LanguageSplit(["de"], ["de"], ["it"])}, "one split each, but de is named twice"),
        ({"split": LanguageSplit(["de"], ["en"], ["it"])}, "en is what others are translated into"),
        ({"k_shot": 40}, r"need 42 sentences of every language.*but de has 12 of up to 5 words"),
        ({"n_way": 2}, "n_way must be 1, not 2"),
        ({"vocabulary": 7}, "vocabulary=7 leaves no word.*take 8 at least"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_remedy(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as refusal:
        data = text(root, **options)
        data.prepare_data()
        data.setup("fit")
    assert len(str(refusal.value).splitlines()) == 1
