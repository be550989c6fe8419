"""Few-shot episodes from tables of text. The texts here name their class and their number."""

import csv
import gzip
import json
import logging
import shlex
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.backbones import Conv4, EmbeddingAverage, TextCNN
from lightning_meta.cli import main
from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import CLINC150, ClassSplit, CLINC150Domains, HuffPost, TextClasses, UniformTasks
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.task_bank import GroupedClassBank
from lightning_meta.errors import ConfigError, DataError, UserError
from lightning_meta.reports import EpisodeGallery, LayerSimilarity, SupportUse
from tests.datamodules.test_episodes import assert_same, at, differ, ready

ROOT = Path(__file__).parents[2]
NAMES = [f"intent_{letter}" for letter in "abcdefghij"]
HALVES = ClassSplit(fractions=(0.5, 0.2, 0.3))
Row = tuple[str, str]  # text, class


def texts_of(name: str, count: int) -> list[str]:
    return [f"the {name}"] + [f"the {name} n{index}" for index in range(1, count)]


def rows() -> list[Row]:
    """Ten classes; intent_a has 6 texts, intent_b 7 and so on; classes take turns."""
    of_class = {name: texts_of(name, 6 + number) for number, name in enumerate(NAMES)}
    return [(texts[i], name) for i in range(20) for name, texts in of_class.items() if i < len(texts)]


def write(path: Path, table: list[Row], columns: tuple[str, str] = ("text", "label")) -> Path:
    """Write a table in the format that the name of the file says, with a further column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        if ".json" in path.name:
            file.writelines(json.dumps({"id": 7, columns[0]: text, columns[1]: name}) + "\n\n" for text, name in table)
        else:
            writer = csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",")
            writer.writerows([("id", *columns), *((7, *row) for row in table)])
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.jsonl", rows())


def text_classes(file: Path, **overrides: Any) -> TextClasses:
    settings: dict[str, Any] = dict(
        n_way=2, n_query=2, split=HALVES, length=4, min_count=1, vocabulary=200, test_episodes=5, val_episodes=4
    )
    return TextClasses(str(file), **(settings | overrides))


def load(file: Path, **overrides: Any) -> dict[Split, dict[str, list[str]]]:
    """The words of all examples of each class of each split, read back from the bank."""
    datamodule = text_classes(file, **overrides)
    datamodule.prepare_data()
    ready(datamodule)
    words = ["-", "?", *datamodule.tokenizer.words]
    found: dict[Split, dict[str, list[str]]] = {}
    for split, names in datamodule.classes.items():
        bank = datamodule.source(split)
        parts = bank.inputs.split(bank.size.tolist())
        texts = [[" ".join(words[index] for index in row) for row in part.tolist()] for part in parts]
        found[split] = dict(zip(names, texts, strict=True))
    return found


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.csv.gz", "a.tsv.gz"])
def test_every_format_gives_the_same_examples(tmp_path: Path, file: Path, name: str) -> None:
    assert load(write(tmp_path / name, rows())) == load(file)


def test_a_compressed_file_is_found_by_the_name_of_the_plain_one(tmp_path: Path, file: Path) -> None:
    write(tmp_path / "packed" / "texts.csv.gz", rows())
    assert load(tmp_path / "packed" / "texts.csv") == load(file)


def test_columns_are_chosen_and_a_table_may_quote_and_begin_with_a_mark(tmp_path: Path) -> None:
    table = [(f'"{text}",\n{name}', name) for text, name in rows()]
    path = write(tmp_path / "a.csv", table, ("query", "intent"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    datamodule = text_classes(path, text_column="query", class_column="intent")
    assert datamodule.texts["intent_b"][0] == '"the intent_b",\nintent_b'


def test_classes_keep_all_their_texts_in_the_order_of_the_file(file: Path) -> None:
    found = load(file)
    assert {name: len(texts) for of_split in found.values() for name, texts in sorted(of_split.items())} == {
        name: 6 + number for number, name in enumerate(NAMES)
    }
    name, texts = next(iter(found["train"].items()))
    assert texts[:2] == [f"the {name} - -", f"the {name} n1 -"]


def test_words_that_only_validation_and_test_classes_have_are_unknown(file: Path) -> None:
    found = load(file)
    for split in ("val", "test"):
        for texts in found[split].values():
            assert texts[:2] == ["the ? - -", "the ? n1 -"]


def test_with_buckets_unknown_words_are_told_apart(file: Path) -> None:
    datamodule = text_classes(file, unknown_buckets=50)
    datamodule.prepare_data()
    ready(datamodule)
    first = datamodule.source("test").inputs[datamodule.source("test").first]  # "the <name>" of each class
    assert first[:, 0].unique().tolist() == [52], "the most frequent word comes after the buckets"
    assert len(first[:, 1].unique()) == len(first) and first[:, 1].max() < 52


def test_the_vocabulary_has_a_bound_and_a_least_frequency(file: Path) -> None:
    datamodule = text_classes(file, vocabulary=5, min_count=1)
    assert len(datamodule.tokenizer.words) == 3 and datamodule.tokenizer.words[0] == "the"
    assert set(text_classes(file, min_count=5).tokenizer.words) == {
        *("the", "n1", "n2", "n3", "n4", "n5"),
        *text_classes(file).classes["train"],
    }


def test_fractions_share_out_all_classes_and_the_log_names_them(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = load(file)
    assert {split: len(of_split) for split, of_split in found.items()} == {"train": 5, "val": 2, "test": 3}
    assert sorted(name for of_split in found.values() for name in of_split) == NAMES
    for split, of_split in found.items():
        assert f"classes for {split}: {', '.join(of_split)}." in caplog.text


@pytest.fixture
def lists(tmp_path: Path) -> ClassSplit:
    for split, names in {"train": NAMES[6:2:-1], "val": NAMES[:3], "test": NAMES[7:]}.items():
        (tmp_path / f"{split}.txt").write_text("\n".join([*names, ""]))
    return ClassSplit(train="train.txt", val="val.txt", test=str(tmp_path / "test.txt"))


def test_lists_split_the_classes(file: Path, lists: ClassSplit) -> None:
    found = load(file, split=lists)
    assert {split: list(of_split) for split, of_split in found.items()} == {
        "train": NAMES[6:2:-1],
        "val": NAMES[:3],
        "test": NAMES[7:],
    }


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_episode_is_a_function_of_the_seed_the_split_and_its_number(file: Path, split: Split) -> None:
    def episodes(ids: list[int], seed: int = 0) -> Episode:
        return ready(text_classes(file, n_query=3, seed=seed)).dataset(split).__getitems__(ids)

    together = episodes([5, 0, 10**6])
    assert together.support.x.shape == (3, 2, 4) and together.query.x.shape == (3, 6, 4)
    assert together.support.x.dtype == torch.int64
    for place, index in enumerate([5, 0, 10**6]):
        assert_same(at(together, place), at(episodes([index]), 0))
    assert differ(together, episodes([5, 0, 10**6], seed=1)) and differ(together, episodes([6, 1, 10**6 + 1]))


def test_support_and_query_are_different_texts_of_the_same_class(file: Path) -> None:
    datamodule = text_classes(file, n_query=3)
    tasks = ready(datamodule).dataset("train").__getitems__(range(50))
    encoded = {
        tuple(row): name
        for name in datamodule.classes["train"]
        for row in datamodule.tokenizer.encode(datamodule.texts[name]).tolist()
    }
    for support, query, y in zip(tasks.support.x.tolist(), tasks.query.x.tolist(), tasks.query.y.tolist(), strict=True):
        classes = [encoded[tuple(row)] for row in support]
        assert len(set(classes)) == 2
        assert [encoded[tuple(row)] for row in query] == [classes[label] for label in y]
        assert len({tuple(row) for row in (*support, *query)}) == 8


# ---- mistakes -------------------------------------------------------------------------------------------------------


def refused(datamodule: TextClasses, kind: type[UserError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        datamodule.prepare_data()
        ready(datamodule)
        datamodule.dataset("train")
    return str(caught.value)


@pytest.mark.parametrize(
    ("datamodule", "facts"),
    [
        (lambda root: text_classes(root / "no.csv"), ["no.csv", "no.csv.gz", "'text'", "'label'"]),
        (lambda root: CLINC150(str(root)), ["clinc150/full.jsonl", "'sentence'", "github.com/tdopierre/ProtAugment"]),
        (lambda root: HuffPost(str(root)), ["huffpost/huffpost.json", "'raw'", "github.com/ws-jiang/MetaPrompter"]),
    ],
    ids=["own", "clinc150", "huffpost"],
)
def test_a_missing_file_is_described(datamodule: Any, facts: list[str], tmp_path: Path) -> None:
    message = refused(datamodule(tmp_path))
    assert all(fact in message for fact in facts), message


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"raw": "a", "label": 1}', ["line 2", "'text'", "raw, label"]),
        ("a.csv", "text,intent\na,b", ["line 2", "'label'", "text, intent", "--data.class_column"]),
        ("a.csv", "text,label\na,b\na", ["line 3", "'label'"]),
        ("a.csv", "text,label\na,", ["line 2", "'label'"]),
        ("a.csv", 'text,label\n"a', ["unexpected end"]),
        ("a.json", '[\n{"text": "a", "label": "b"}]', ["line 1", "JSON lines have one"]),
        ("a.json", '[{"text": "a", "label": "b"}]', ["line 1", "JSON lines have one"]),
        ("a.json", '{"text": ["a"], "label": "b"}', ["line 1", "a text in the column 'text'"]),
        ("a.jsonl.gz", "no gzip", ["gzip"]),
        ("a.csv", b"text,label\n\xff\xfe,b", ["not in UTF-8", "0xff"]),
    ],
)
def test_a_row_that_cannot_be_read_is_named(name: str, content: str | bytes, facts: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(text_classes(tmp_path / name))
    assert all(fact in message for fact in (str(tmp_path / name), *facts)), message


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv.gz", rows())
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path} cannot be read: Compressed file ended" in refused(text_classes(path))


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert ".jsonl, .json, .csv, .tsv" in refused(text_classes(tmp_path / "a.txt"), ConfigError)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"split": ClassSplit()}, ["10 classes", "--data.split.fractions", "--data.split.train"]),
        ({"n_way": 6}, ["n_way=6", "5 classes"]),
        ({"train": ShapeOverride(n_query=15)}, ["train episodes need 16 texts", "n_query=15", "intent_"]),
        ({"task_augmentation": ["rotate"]}, ["['rotate']", "4 token ids", "[]"]),
        ({"task_augmentation": ["mix"]}, ["['mix']", "4 token ids"]),
    ],
)
def test_settings_that_the_texts_do_not_allow_are_refused(
    settings: dict[str, Any], facts: list[str], file: Path
) -> None:
    message = refused(text_classes(file, **settings), ConfigError)
    assert all(fact in message for fact in facts), message


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"length": 0}, "length=0"),
        ({"min_count": 0}, "min_count=0"),
        ({"vocabulary": 2}, "vocabulary=2"),
        ({"vocabulary": 12, "unknown_buckets": 10}, "vocabulary=12.*unknown_buckets=10.*take 13"),
        ({"unknown_buckets": -1}, "unknown_buckets=-1"),
    ],
)
def test_impossible_encodings_are_refused(settings: dict[str, int], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        text_classes(Path("a.csv"), **settings)


def test_mistakes_in_lists_are_named(file: Path, lists: ClassSplit, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("intent_a\nintent_z\n")
    assert "1 classes of the split are not in" in refused(text_classes(file, split=lists))
    (tmp_path / "val.txt").write_text("intent_d\n")
    assert "intent_d is in the train split" in refused(text_classes(file, split=lists))
    (tmp_path / "val.txt").write_text("\n")
    assert f"the val split of {file} has no classes" in refused(text_classes(file, split=lists))
    (tmp_path / "val.txt").unlink()
    assert f"{tmp_path / 'val.txt'}, the list of the val classes" in refused(text_classes(file, split=lists))


# ---- domains --------------------------------------------------------------------------------------------------------

DOMAINS = {"money": NAMES[:3], "travel": NAMES[3:5], "home": NAMES[5:8], "work": NAMES[8:]}


def in_domains(file: Path, domains: Any = DOMAINS, **overrides: Any) -> TextClasses:
    file.with_name("domains.json").write_text(json.dumps(domains))
    return text_classes(
        file, domains="domains.json", **({"split": ClassSplit(fractions=(0.5, 0.25, 0.25))} | overrides)
    )


def test_classes_of_an_episode_share_a_domain(file: Path) -> None:
    """And all domains and classes of a split are drawn at some time; without the option, domains are mixed."""
    domain_of = {name: domain for domain, names in DOMAINS.items() for name in names}

    def met(datamodule: TextClasses, split: Split) -> list[set[str]]:
        """The domains of the classes of each of many episodes, by the words of their texts."""
        words = ["-", "?", *datamodule.tokenizer.words]
        tasks = ready(datamodule).dataset(split).__getitems__(range(60))
        assert all(sorted({*y.tolist()}) == [0, 1] for y in tasks.support.y)
        for t in range(60):  # a class has one label in both sets
            named = [{(words[x[1]], y) for x, y in zip(b.x[t].tolist(), b.y[t].tolist(), strict=True)} for b in tasks]
            assert named[0] == named[1]
        return [{words[row[1]] for row in rows} for rows in tasks.support.x.tolist()]

    datamodule = in_domains(file)
    episodes = met(datamodule, "train")
    assert all(len({domain_of[name] for name in names}) == 1 < len(names) for names in episodes)
    assert {name for names in episodes for name in names} == {*datamodule.classes["train"]}
    mixed = met(text_classes(file, split=ClassSplit(fractions=(0.6, 0.2, 0.2))), "train")
    assert any(len({domain_of[name] for name in names}) > 1 for names in mixed)


def test_no_domain_is_in_two_splits(file: Path) -> None:
    datamodule = in_domains(file)
    parts, classes = datamodule.parts_of_split, datamodule.classes
    assert sorted(name for of_split in parts.values() for name in of_split) == sorted(DOMAINS)
    assert sorted(name for of_split in classes.values() for name in of_split) == NAMES
    assert {split: sorted(name for part in of for name in DOMAINS[part]) for split, of in parts.items()} == {
        split: sorted(names) for split, names in classes.items()
    }
    known = {*datamodule.tokenizer.words}
    assert {*classes["train"]} <= known and not known & {*classes["val"], *classes["test"]}
    assert datamodule.facts("test")["domains"] == 1 and "classes of one of 2 domains" in datamodule.describe("train")


def test_domains_can_be_listed(file: Path) -> None:
    for split, names in (("train", "money\nwork"), ("val", "home"), ("test", "travel")):
        (file.parent / f"{split}.txt").write_text(names)
    lists = ClassSplit(train="train.txt", val="val.txt", test="test.txt")
    datamodule = in_domains(file, split=lists)
    assert datamodule.classes == {"train": NAMES[:3] + NAMES[8:], "val": NAMES[5:8], "test": NAMES[3:5]}
    (file.parent / "val.txt").write_text("work")
    assert "a domain must be in one split" in refused(in_domains(file, split=lists))
    (file.parent / "val.txt").write_text("sports")
    assert "1 domains of the split are not in" in refused(in_domains(file, split=lists))


def test_training_on_the_domains_of_validation_too(file: Path) -> None:
    datamodule = ready(in_domains(file, train_split="trainval"))
    bank = datamodule.source("train")
    parts = [*datamodule.parts_of_split["train"], *datamodule.parts_of_split["val"]]
    assert isinstance(bank, GroupedClassBank) and bank.classes.tolist() == [len(DOMAINS[part]) for part in parts]
    assert bank.size.tolist() == [6 + NAMES.index(name) for part in parts for name in sorted(DOMAINS[part])]


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"money": NAMES[:9]}, "has no domain for 1 of 10 classes: intent_j"),
        ({"money": NAMES, "work": NAMES[:2]}, "has 2 classes twice: intent_a, intent_b"),
        ({"money": [*NAMES, "sports"]}, "has 1 classes that no text has: sports"),
        ({"money": "intent_a"}, "must have the classes of each domain"),
        (NAMES, "must have the classes of each domain"),
    ],
)
def test_domains_that_do_not_fit_are_refused(file: Path, domains: Any, message: str) -> None:
    assert message in refused(in_domains(file, domains))


def test_domains_and_what_they_do_not_go_with(file: Path) -> None:
    for options in ({"labels": "fixed"}, {"train_classes": 2}, {"variable": UniformTasks()}):
        with pytest.raises(ConfigError, match="leave labels, train_classes and variable out"):
            in_domains(file, **options)
    with pytest.raises(ConfigError, match="n_way=4 classes are needed of every task"):
        ready(in_domains(file, n_way=4))
    datamodule = text_classes(file, domains="nowhere.json")
    assert "nowhere.json, the domains, cannot be read" in refused(datamodule)


# ---- the two data sets ----------------------------------------------------------------------------------------------


def test_clinc150_has_five_published_splits(tmp_path: Path) -> None:
    root = tmp_path / "clinc150"
    write(root / "full.jsonl.gz", rows(), ("sentence", "label"))
    assert "few_shot with the class splits is missing" in refused(CLINC150(str(tmp_path)))
    for fold, start in (("01", 0), ("05", 1)):
        (root / "few_shot" / fold).mkdir(parents=True)
        for place, name in enumerate(("train", "valid", "test")):
            of_split = NAMES[start + 3 * place : start + 3 * place + 3]
            (root / "few_shot" / fold / f"labels.{name}.txt").write_text("\n".join(of_split))
    assert CLINC150(str(tmp_path)).classes == {"train": NAMES[:3], "val": NAMES[3:6], "test": NAMES[6:9]}
    assert CLINC150(str(tmp_path), fold=5).classes == {"train": NAMES[1:4], "val": NAMES[4:7], "test": NAMES[7:]}
    with pytest.raises(ConfigError, match="fold=6"):
        CLINC150(str(tmp_path), fold=6)


def test_clinc150_by_domain(tmp_path: Path) -> None:
    root = tmp_path / "clinc150"
    intents = [f"intent_{number:02}" for number in range(20)]
    write(root / "full.jsonl", [(f"the {name}", name) for name in intents], ("sentence", "label"))
    datamodule = CLINC150Domains(str(tmp_path))
    assert "Copy domains.json there from the folder data of https://github.com/clinc/oos-eval" in refused(datamodule)
    (root / "domains.json").write_text(json.dumps({f"d{k}": intents[2 * k : 2 * k + 2] for k in range(10)}))
    splits = [CLINC150Domains(str(tmp_path), fold=fold).parts_of_split for fold in range(1, 6)]
    assert all([len(parts[split]) for split in ("train", "val", "test")] == [5, 2, 3] for parts in splits)
    assert len({tuple(parts["test"]) for parts in splits}) > 1


def test_huffpost_has_its_classes_by_number(tmp_path: Path) -> None:
    path = tmp_path / "huffpost" / "huffpost.json"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"raw": "a b", "label": number}) + "\n" for number in reversed(range(41))))
    classes = HuffPost(str(tmp_path)).classes
    assert {split: [int(name) for name in names] for split, names in classes.items()} == {
        "train": list(range(20)),
        "val": list(range(20, 25)),
        "test": list(range(25, 41)),
    }


# ---- with algorithms ------------------------------------------------------------------------------------------------


def trainer(folder: Path, *callbacks: pl.Callback, **kwargs: Any) -> pl.Trainer:
    options: dict[str, Any] = dict(
        accelerator="cpu", max_steps=3, inference_mode=False, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, logger=CSVLogger(folder, name="", version=""), log_every_n_steps=1,
        callbacks=list(callbacks), enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )  # fmt: skip
    return pl.Trainer(**(options | kwargs))


def test_a_checkpoint_brings_its_vocabulary(file: Path, tmp_path: Path) -> None:
    data = text_classes(file, steps_per_epoch=3)
    module = ProtoNet(EmbeddingAverage(200, 4, 8))
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    trainer(tmp_path, checkpoint).fit(module, data)
    (before,) = trainer(tmp_path).test(module, data, verbose=False)
    write(file, [("zebra " * 20, name) for name in NAMES] + rows())
    changed = text_classes(file)
    assert changed.tokenizer.words[0] == "zebra" and data.tokenizer.words[0] == "the"
    (after,) = trainer(tmp_path).test(module, changed, ckpt_path=checkpoint.last_model_path, verbose=False)
    assert changed.tokenizer.words == data.tokenizer.words
    assert "zebra" not in changed.tokenizer.words
    assert (changed.source("test").inputs == 1).all(1).any(), "encoded anew, with zebra as an unknown word"
    assert after["test/loss"] != before["test/loss"], "the texts have changed"
    write(file, rows())
    (same,) = trainer(tmp_path).test(module, text_classes(file), ckpt_path=checkpoint.last_model_path, verbose=False)
    assert same == before


def backbone_after(stage: str, datamodule: TextClasses, folder: Path) -> EmbeddingAverage:
    """A new one, after a Trainer has set it up."""
    torch.manual_seed(0)
    backbone = EmbeddingAverage(200, 4, 8)
    getattr(trainer(folder, max_steps=0), stage)(ProtoNet(backbone), datamodule)
    return backbone


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_statistics_are_those_of_the_training_texts_alone(stage: str, file: Path, tmp_path: Path) -> None:
    data = text_classes(file)
    of_training = data.tokenizer.encode([text for name in data.classes["train"] for text in data.texts[name]])
    torch.manual_seed(0)
    expected = EmbeddingAverage(200, 4, 8)
    expected.fit(of_training)
    backbone = backbone_after(stage, data, tmp_path)
    assert backbone.fitted
    torch.testing.assert_close(dict(backbone.named_parameters()), dict(expected.named_parameters()), rtol=0, atol=0)
    assert torch.equal(backbone.word_weights, expected.word_weights)
    held_out = {*data.classes["val"], *data.classes["test"]}
    write(file, [(f"{text} n1 n1 n2" if name in held_out else text, name) for text, name in rows()])
    same = backbone_after(stage, text_classes(file), tmp_path)
    torch.testing.assert_close(same.state_dict(), backbone.state_dict(), rtol=0, atol=0)
    write(file, [(text if name in held_out else f"{text} n1 n1 n2", name) for text, name in rows()])
    assert not torch.equal(backbone_after(stage, text_classes(file), tmp_path).word_weights, backbone.word_weights)


def test_classes_that_are_not_in_use_have_no_part_in_the_statistics(file: Path, tmp_path: Path) -> None:
    data = text_classes(file, train_classes=2)
    used = [data.classes["train"][index] for index in (0, 2)]
    torch.manual_seed(0)
    expected = EmbeddingAverage(200, 4, 8)
    expected.fit(data.tokenizer.encode([text for name in used for text in data.texts[name]]))
    assert torch.equal(backbone_after("test", data, tmp_path).word_weights, expected.word_weights)


def test_a_checkpoint_brings_its_statistics(file: Path, tmp_path: Path) -> None:
    """To a test, to a module that is loaded, and to its predictions; none of them takes statistics anew."""
    data = text_classes(file, steps_per_epoch=3)
    module = ProtoNet(EmbeddingAverage(200, 4, 8), distance="cosine")
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    trainer(tmp_path, checkpoint).fit(module, data)
    after_training = module.state_dict()
    write(file, [(f"{text} n1", name) for text, name in rows()])
    torch.manual_seed(1)
    tested = ProtoNet(EmbeddingAverage(200, 4, 8), distance="cosine")
    trainer(tmp_path).test(tested, text_classes(file), ckpt_path=checkpoint.last_model_path, verbose=False)
    torch.testing.assert_close(tested.state_dict(), after_training, rtol=0, atol=0)
    loaded = ProtoNet.load_from_checkpoint(
        checkpoint.last_model_path, backbone=EmbeddingAverage(200, 4, 8), distance="cosine"
    )
    trainer(tmp_path).validate(loaded, text_classes(file), verbose=False)
    trainer(tmp_path, max_steps=0).fit(loaded, text_classes(file))
    torch.testing.assert_close(loaded.state_dict(), after_training, rtol=0, atol=0)
    ids = data.tokenizer.encode(["the n1", "the intent_b n3", "unheard of", "n2"])
    probabilities = [each.eval().predict(each.adapt(Batch(ids[:2], torch.arange(2))), ids) for each in (module, loaded)]
    assert torch.equal(*probabilities)
    assert probabilities[0][:2].argmax(1).tolist() == [0, 1]


def test_a_stopped_training_goes_on_exactly(file: Path, tmp_path: Path) -> None:
    """With word dropout, and whatever vectors the new module starts from."""

    def train(steps: int, seed: int, ckpt_path: str | None = None) -> tuple[ProtoNet, str]:
        torch.manual_seed(seed)
        module = ProtoNet(EmbeddingAverage(200, 4, 8, word_dropout=0.3), distance="cosine")
        checkpoint = ModelCheckpoint(tmp_path / f"{seed}", save_last=True)
        data = text_classes(file, steps_per_epoch=2)
        trainer(tmp_path, checkpoint, max_steps=steps).fit(module, data, ckpt_path=ckpt_path)
        return module, checkpoint.last_model_path

    whole, _ = train(6, seed=0)
    _, stopped = train(4, seed=0)
    resumed, _ = train(6, seed=1, ckpt_path=stopped)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_reports_play_texts_and_draw_no_gallery(file: Path, tmp_path: Path) -> None:
    data = text_classes(file, n_query=4)
    maml = MAML(TextCNN(200, 4, 5, filters=3, widths=(1, 2)), n_way=2)
    gallery, similarity, use = EpisodeGallery(), LayerSimilarity(episodes=3), SupportUse(episodes=3)
    trainer(tmp_path, gallery, similarity, use).test(maml, data, verbose=False)
    assert gallery.paths == []
    table = list(csv.DictReader((tmp_path / "layer_similarity.csv").open()))
    assert [row["layer"] for row in table] == ["embedding", "convolutions.0", "convolutions.1", "head"]
    assert (tmp_path / "support_use.csv").exists()


@pytest.mark.parametrize(
    ("backbone", "facts"),
    [
        (lambda: EmbeddingAverage(100, 4), ["vocabulary=100", "200"]),
        (lambda: EmbeddingAverage(200, 5), ["(5,)", "(4,)"]),
        (lambda: Conv4(), ["(1, 28, 28)", "(4,)", "backbone for texts"]),
    ],
    ids=["vocabulary", "length", "images"],
)
def test_a_backbone_that_does_not_fit_is_refused(backbone: Any, facts: list[str], file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer(tmp_path).test(ProtoNet(backbone()), text_classes(file), verbose=False)
    assert all(fact in str(caught.value) for fact in facts), caught.value


def command(file: Path, *arguments: str) -> list[str]:
    """One step of training with the config of one's own texts."""
    options = [
        *["--model", str(ROOT / "configs/model/protonet.yaml"), "--model.backbone", "EmbeddingAverage"],
        *["--data", str(ROOT / "configs/data/text_classes.yaml"), "--data.file", str(file)],
        *shlex.split("--data.split.fractions [0.5,0.2,0.3] --data.n_way 2 --data.n_query 2 --data.val_episodes 2"),
        *shlex.split("--data.test_episodes 2 --trainer.fast_dev_run true --trainer.logger false"),
    ]
    return ["fit", "--trainer.accelerator", "cpu", *options, *arguments]


def test_the_backbone_follows_the_data_on_the_command_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    cli = main(command(file, "--data.vocabulary", "77", "--data.length", "6", "--model.backbone.embedding_dim", "3"))
    assert cli.model.backbone.embedding.weight.shape == (77, 3)
    assert cli.model.backbone.in_shape == (6,)
    with pytest.raises(SystemExit, match=r"model.backbone.vocabulary=50, but data.vocabulary=10000"):
        main(command(file, "--model.backbone.vocabulary", "50"))
