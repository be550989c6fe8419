"""How classes get their labels: permuted, kept for ever, or the index of the class."""

import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_meta.algorithms import ProtoNet
from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.datamodules import ClassificationDataModule
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.class_bank import ClassBank, Labels
from lightning_meta.datamodules.episodes import EpisodeDataset
from lightning_meta.errors import ConfigError
from tests.conftest import CLASSES, blobs, conv4
from tests.datamodules.test_episodes import assert_same, at, identities, numbered_bank, ready

N_CLASSES, SHAPE = 32, EpisodeShape(n_way=5, k_shot=2, n_query=3)  # labels 0 and 1 have 7 classes, the others 6
# SHA-256 of the meta-batch of episodes 0, 3 and 123456, by sizes of classes, shape, seed and split. Frozen episodes are
# these bytes: a release that changes one of them makes every published result incomparable.
FROZEN: list[tuple[list[int], EpisodeShape, int, Split, str]] = [
    ([20] * 30, EpisodeShape(4, 2, 3), 0, "train", "96957fba64bda82c181ec95901dc505f7e7f9181b773992f4bc392ff799363f7"),
    ([20] * 30, EpisodeShape(4, 2, 3), 0, "val", "7d8bb12df67ebefb5c88dec12e7df77eaa63bf8dbd03945fc4ae35272a635258"),
    (
        [5, 9, 30, 7],
        EpisodeShape(3, 2, 3),
        7,
        "test",
        "4af91f275a22eecca1ca199855ee751f102d9d549a5dea7fd1ff3f72407f1b26",
    ),
]


class Numbered(ClassificationDataModule):
    """The same 32 classes of 20 examples in every split."""

    def load_source(self, split: Split) -> ClassBank:
        return numbered_bank([20] * N_CLASSES)


def numbered(**overrides: Any) -> Numbered:
    settings: dict[str, Any] = SHAPE._asdict() | overrides
    module = Numbered(**settings)
    ready(module)
    return module


def labels_of_classes(tasks: Episode) -> dict[int, set[int]]:
    """All labels that each class has had in a meta-batch."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for batch in tasks:
        for (c, _), label in zip(identities(batch.x.flatten(0, 1)), batch.y.flatten().tolist(), strict=True):
            found[c].add(label)
    return dict(found)


def digest(tasks: Episode) -> str:
    return hashlib.sha256(b"".join(leaf.numpy().tobytes() for leaf in tree_leaves(tasks))).hexdigest()


# ---- shuffled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "shape", "seed", "split", "expected"), FROZEN)
def test_shuffled_episodes_never_change_between_releases(
    sizes: list[int], shape: EpisodeShape, seed: int, split: Split, expected: str
) -> None:
    dataset = EpisodeDataset(numbered_bank(sizes), shape, seed, split)
    assert digest(dataset.__getitems__([0, 3, 123456])) == expected


def test_labels_are_shuffled_by_default() -> None:
    assert all(
        len(labels) == 5 for labels in labels_of_classes(numbered().dataset("train").__getitems__(range(1000))).values()
    )


# ---- fixed ----------------------------------------------------------------------------------------------------------


def test_a_fixed_label_is_the_same_in_all_episodes_of_all_seeds_and_splits() -> None:
    first = labels_of_classes(numbered(labels="fixed").dataset("train").__getitems__(range(400)))
    assert sorted(first) == list(range(N_CLASSES))
    assert all(len(labels) == 1 for labels in first.values())
    splits: tuple[Split, ...] = ("train", "val", "test")
    for seed, split in zip((0, 1, 2), splits, strict=True):
        tasks = numbered(labels="fixed", seed=seed).dataset(split).__getitems__(range(10**6, 10**6 + 400))
        assert labels_of_classes(tasks) == first


def test_fixed_labels_are_shared_out_evenly_and_do_not_follow_the_order_of_the_classes() -> None:
    tasks = numbered(labels="fixed").dataset("train").__getitems__(range(400))
    labels = [labels_of_classes(tasks)[c].pop() for c in range(N_CLASSES)]
    assert np.bincount(labels).tolist() == [7, 7, 6, 6, 6]
    assert len({(label - c) % 5 for c, label in enumerate(labels)}) == 5


def test_an_episode_with_fixed_labels_has_each_label_k_shot_and_n_query_times() -> None:
    tasks = numbered(labels="fixed").dataset("train").__getitems__(range(200))
    for t in range(200):
        support, query = at(tasks, t)
        assert torch.bincount(support.y).tolist() == [2] * 5
        assert torch.bincount(query.y).tolist() == [3] * 5
        seen = identities(support.x) + identities(query.x)
        assert len({c for c, _ in seen}) == 5, "a class occurs under two labels"
        assert len(set(seen)) == 25, "an example occurs twice"


def test_every_class_of_a_label_is_drawn_equally_often() -> None:
    """Else a split would be smaller than it is. 3000 episodes have each of 7 (or 6) classes 429 (or 500) times."""
    tasks = numbered(labels="fixed").dataset("train").__getitems__(range(3000))
    found = torch.tensor([[c for c, _ in identities(task)[::2]] for task in tasks.support.x])
    for column in found.T:
        classes, counts = column.unique(return_counts=True)
        assert len(classes) in (6, 7)
        assert (counts - 3000 / len(classes)).abs().max() < 5 * (3000 / len(classes)) ** 0.5


def test_fixed_labels_follow_the_way_of_a_split() -> None:
    module = numbered(labels="fixed", train=ShapeOverride(n_way=N_CLASSES))
    tasks = module.dataset("train").__getitems__(range(20))
    assert all(len(labels) == 1 for labels in labels_of_classes(tasks).values())
    assert sorted(label for labels in labels_of_classes(tasks).values() for label in labels) == list(range(N_CLASSES))
    assert module.dataset("test")[0].query.y.max() == 4


def test_every_fixed_label_needs_a_class() -> None:
    with pytest.raises(ConfigError, match=rf"n_way={N_CLASSES + 1}\b.*\b{N_CLASSES} classes"):
        numbered(labels="fixed", n_way=N_CLASSES + 1).dataset("train")


# ---- the index of the class -----------------------------------------------------------------------------------------


def test_class_labels_name_the_class_in_the_bank_and_change_nothing_else() -> None:
    module = numbered()
    shuffled = module.dataset("train").__getitems__(range(300))
    module.needs = frozenset({"class_labels"})
    tasks = module.dataset("train").__getitems__(range(300))
    for batch, same in zip(tasks, shuffled, strict=True):
        assert batch.y.flatten().tolist() == [c for c, _ in identities(batch.x.flatten(0, 1))]
        assert batch.y.dtype == same.y.dtype == torch.int64
        assert torch.equal(batch.x, same.x)
    assert tasks.query.y.unique().tolist() == list(range(module.n_classes("train")))
    assert module.dataset("val")[0].query.y.max() == 4, "only training episodes"


def test_n_classes_counts_the_classes_of_the_split() -> None:
    module = blobs()
    ready(module)
    assert module.n_classes("train") == module.n_classes("test") == CLASSES


class Names(ProtoNet):
    """Needs class labels and keeps those that it is given."""

    needs = frozenset({"class_labels"})

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.n_classes = self.trainer.datamodule.n_classes("train")
        self.seen: dict[str, list[Tensor]] = {"train": [], "val": []}

    def training_step(self, tasks: Episode, batch_idx: int) -> Tensor:
        self.seen["train"].append(tasks.query.y)
        three = (part._replace(y=part.y % 3) for part in tasks)
        return super().training_step(Episode(*three), batch_idx)

    def validation_step(self, tasks: Episode, batch_idx: int) -> dict[str, Tensor]:
        self.seen["val"].append(tasks.query.y)
        return super().validation_step(tasks, batch_idx)


def test_an_algorithm_needs_class_labels_and_the_next_one_has_ordinary_ones(tmp_path: Any) -> None:
    data, names = blobs(), Names(backbone=conv4())

    def fit(module: pl.LightningModule) -> None:
        pl.Trainer(
            accelerator="cpu",
            max_steps=4,
            inference_mode=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(module, data)

    fit(names)
    assert names.n_classes == CLASSES
    assert 3 < torch.cat(names.seen["train"]).max() < CLASSES
    assert torch.cat(names.seen["val"]).max() == 2
    fit(ProtoNet(backbone=conv4()))
    assert data.dataset("train").__getitems__(range(20)).query.y.max() == 2, "the next algorithm has ordinary labels"


@pytest.mark.parametrize("augmentation", ["rotate", "mix"])
def test_class_labels_and_task_augmentation_are_refused_together(augmentation: Any) -> None:
    module = blobs(task_augmentation=[augmentation])
    module.needs = frozenset({"class_labels"})
    module.setup("test")
    with pytest.raises(ConfigError, match=rf"{CLASSES} classes.*\['{augmentation}'\].*\[\]"):
        module.setup("fit")


# ---- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["shuffled", "fixed", "class"])
def test_an_episode_is_the_same_in_any_meta_batch(labels: Labels) -> None:
    dataset = EpisodeDataset(replace(numbered_bank([20] * N_CLASSES), labels=labels), SHAPE, 0, "train")
    ids = [5, 0, 1_000_000, 3]
    together = dataset.__getitems__(ids)
    for position, index in enumerate(ids):
        assert_same(dataset[index], at(together, position))


def test_options_stay_when_the_bank_moves_to_a_device() -> None:
    bank = replace(numbered_bank([5, 5]), labels="fixed", augmentation=("mix",)).to(torch.device("meta"))
    assert (bank.inputs.device.type, bank.labels, bank.augmentation) == ("meta", "fixed", ("mix",))


@pytest.mark.parametrize("labels", ["class", "other"])
def test_unknown_labels_are_refused(labels: Any) -> None:
    with pytest.raises(ConfigError, match=rf"labels='{labels}'"):
        blobs(labels=labels)


def test_training_may_use_a_part_of_the_classes() -> None:
    module = numbered(train_classes=8)
    tasks = {split: module.dataset(split).__getitems__(range(200)) for split in ("train", "val")}
    assert set(labels_of_classes(tasks["train"])) == {0, 4, 8, 12, 16, 20, 24, 28}  # at even distances
    assert set(labels_of_classes(tasks["val"])) == set(range(N_CLASSES))
    assert module.n_classes("train") == 8


def test_a_part_of_the_classes_keeps_fixed_labels() -> None:
    module = numbered(train_classes=10, labels="fixed")
    found = labels_of_classes(module.dataset("train").__getitems__(range(200)))
    assert len(found) == 10
    assert all(len(labels) == 1 for labels in found.values())
    assert sorted(label for labels in found.values() for label in labels) == sorted([*range(5)] * 2)


@pytest.mark.parametrize("classes", [0, 33])
def test_more_training_classes_than_there_are_is_an_error(classes: int) -> None:
    with pytest.raises(ConfigError, match=f"train_classes={classes} must be between 1 and the 32 classes"):
        numbered(train_classes=classes).source("train")


class Apart(ClassificationDataModule):
    """Other classes in every split, of different sizes: 0 to 5, 6 to 9 and 10 to 15."""

    def load_source(self, split: Split) -> ClassBank:
        sizes, before = {"train": ([9, 5, 7, 6, 8, 5], 0), "val": ([6, 9, 5, 7], 6), "test": ([5] * 6, 10)}[split]
        bank = numbered_bank(sizes)
        return replace(bank, inputs=bank.inputs + torch.tensor([before, 0], dtype=torch.uint8))


def apart(**overrides: Any) -> Apart:
    module = Apart(n_way=4, k_shot=2, n_query=3, **overrides)
    ready(module)
    return module


@pytest.mark.parametrize(("train_split", "classes"), [("train", 6), ("trainval", 10)])
def test_training_may_use_the_classes_of_validation_too(train_split: Any, classes: int) -> None:
    """All examples of all classes, and no others; validation and test are what they are without."""
    module = apart(train_split=train_split)
    tasks = module.dataset("train").__getitems__(range(400))
    sizes = [9, 5, 7, 6, 8, 5, 6, 9, 5, 7]
    seen = {identity for batch in tasks for identity in identities(batch.x.flatten(0, 1))}
    assert seen == {(c, example) for c in range(classes) for example in range(sizes[c])}
    assert module.n_classes("train") == classes
    for split in ("val", "test"):
        assert_same(module.dataset(split).__getitems__(range(20)), apart().dataset(split).__getitems__(range(20)))


def test_training_on_both_is_stated_in_results() -> None:
    assert apart().trained_on() == "Apart"
    assert apart(train_split="trainval").trained_on() == "Apart (training and validation classes)"


def test_an_unknown_training_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train_split='val' must be train or trainval"):
        blobs(train_split="val")
