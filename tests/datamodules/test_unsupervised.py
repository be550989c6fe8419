"""Training episodes without labels: what they are made of, that labels are never read, and that they teach."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_meta.algorithms import Baseline, ProtoNet
from lightning_meta.backbones import Conv4
from lightning_meta.core import Episode
from lightning_meta.core.augment import augment
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import (
    AAL,
    UMTRA,
    Autoencoder,
    CACTUs,
    Mixed,
    OfBackbone,
    OfRun,
    Pixels,
    UniformTasks,
    UnsupervisedTasks,
)
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.unsupervised import ClusterBank
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule
from tests.conftest import CLASSES, EXAMPLES, Blobs, conv4
from tests.datamodules.test_episodes import assert_same, ready

FEW = CACTUs(clusters=6, features=Pixels(4))
CODES = CACTUs(6, Autoencoder(code=4, steps=5))
KINDS = [UMTRA(), UMTRA(augment_support=True, flip=True), AAL(), FEW, CACTUs(6, Pixels(4), partitions=2), CODES]
EACH = pytest.mark.parametrize("tasks", KINDS, ids=["umtra", "both", "aal", "cactus", "partitions", "autoencoder"])


class Separated(Blobs):
    """Blobs with little noise: k-means finds the true classes."""

    def load_source(self, split: Split) -> ClassBank:
        generator = torch.Generator().manual_seed({"train": 1, "val": 2, "test": 3}[split])
        patterns = 200 * torch.randint(2, (CLASSES, 1, 1, 16, 16), generator=generator)
        noise = torch.randint(20, (CLASSES, EXAMPLES, 1, 16, 16), generator=generator)
        return ClassBank.from_classes((patterns + noise).to(torch.uint8))


class Relabelled(Blobs):
    """The images of Blobs in the same places, with their classes cut at other places."""

    def load_source(self, split: Split) -> ClassBank:
        bank = super().load_source(split)
        if split != "train":
            return bank
        size = np.array([len(bank.inputs) - 30, 10, 20])
        return replace(bank, first=size.cumsum() - size, size=size)


def data(tasks: UnsupervisedTasks, kind: type[Blobs] = Blobs, **overrides: Any) -> Any:
    settings: dict[str, Any] = dict(n_way=3, k_shot=2, n_query=3, val_episodes=5, test_episodes=5, meta_batch_size=4)
    return ready(kind(unsupervised=tasks, **(settings | overrides)))


def train(tasks: UnsupervisedTasks, count: int = 20, **overrides: Any) -> Episode:
    return data(tasks, **overrides).dataset("train").__getitems__(range(count))


def fit(module: EpisodicModule[Any], datamodule: Blobs, steps: int) -> None:
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    pl.Trainer(max_steps=steps, accelerator="cpu", inference_mode=False, **quiet).fit(module, datamodule)


def images(module: Any) -> Tensor:
    return module.training_inputs().float() / 255


def places(x: Tensor, bank: Tensor) -> Tensor:
    """Which image of the bank each of `x` is; fails unless it is one of them."""
    found, place = (x.flatten(1)[:, None] == bank.flatten(1)).all(-1).max(1)
    assert found.all()
    return place


@EACH
def test_labels_are_never_read_and_do_not_decide(tasks: UnsupervisedTasks) -> None:
    assert_same(train(tasks), train(tasks, kind=Relabelled))


@EACH
def test_an_episode_is_the_same_alone_and_in_a_batch(tasks: UnsupervisedTasks) -> None:
    episodes = train(tasks)
    assert_same(Episode(*(type(part)(*(leaf[[7]] for leaf in part)) for part in episodes)),
                data(tasks).dataset("train").__getitems__([7]))  # fmt: skip
    assert episodes.support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 20
    assert episodes.query.y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 20
    assert not torch.equal(episodes.query.x[0], episodes.query.x[1])
    assert episodes.query.x.min() >= 0 and episodes.query.x.max() <= 1


@EACH
def test_validation_and_test_have_the_true_classes(tasks: UnsupervisedTasks) -> None:
    plain = ready(Blobs(n_way=3, k_shot=2, n_query=3, val_episodes=5, test_episodes=5))
    for split in ("val", "test"):
        assert_same(data(tasks).dataset(split).__getitems__(range(5)), plain.dataset(split).__getitems__(range(5)))


def test_a_class_of_umtra_is_one_image_and_what_augmentation_makes_of_it() -> None:
    module = data(UMTRA({"shift_x": 0.25}), k_shot=1)
    episodes = module.dataset("train").__getitems__(range(10))
    of_class = places(episodes.support.x.flatten(0, 1), images(module)).view(10, 3)
    assert all(len(set(row)) == 3 for row in of_class.tolist())
    for query, place in zip(episodes.query.x.view(-1, 3, 1, 16, 16), of_class.flatten(), strict=True):
        moved = torch.linspace(-0.25, 0.25, 801)
        candidates = augment(images(module)[place].expand(801, -1, -1, -1), {"shift_x": moved})
        assert (candidates[:, None] - query).abs().amax((2, 3, 4)).amin(0).max() < 0.02
    augmented = train(UMTRA({"shift_x": 0.25}, augment_support=True), k_shot=1)
    assert not torch.equal(augmented.support.x[:10], episodes.support.x)


def test_flipped_images_are_mirrored() -> None:
    module = data(UMTRA({}, flip=True), k_shot=1, n_query=10)
    episodes = module.dataset("train").__getitems__(range(10))
    support = episodes.support.x[:, :, None].expand(-1, -1, 10, -1, -1, -1)
    query = episodes.query.x.unflatten(1, (3, 10))
    same, mirrored = ((query - x).abs().amax((3, 4, 5)) < 1e-5 for x in (support, support.flip(-1)))
    assert (same | mirrored).all()
    assert 106 < mirrored.sum() < 194  # of 300, five standard deviations about the half


def test_a_class_of_aal_has_images_of_its_own_and_its_queries_are_of_them_in_turn() -> None:
    module = data(AAL({"brightness": 0.0}))
    episodes = module.dataset("train").__getitems__(range(10))
    support = places(episodes.support.x.flatten(0, 1), images(module)).view(10, 3, 2)
    assert all(len(set(row)) == 6 for row in support.flatten(1).tolist())
    query = places(episodes.query.x.flatten(0, 1), images(module)).view(10, 3, 3)
    assert torch.equal(query, support[:, :, [0, 1, 0]])


def test_episodes_of_umtra_collide_as_often_as_chance_says() -> None:
    """Two of N images are of the same class in 1 - prod(1 - i/C) of the episodes, for large classes."""
    n_way, n_classes, size = 5, 12, 1000
    source = UMTRA().source(torch.zeros(n_classes * size, 1, 2, 2, dtype=torch.uint8), EpisodeShape(n_way, 1, 1))
    rows = source.draw(episode_keys(0, 0, range(4000)), EpisodeShape(n_way, 1, 1)).rows[..., 0]
    collided = sum(len(set(row)) < n_way for row in (rows // size).tolist()) / 4000
    expected = 1 - prod(1 - i / n_classes for i in range(n_way))
    assert abs(collided - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_clusters_of_separated_classes_are_the_classes() -> None:
    module = data(CACTUs(clusters=CLASSES, features=Pixels(8)), kind=Separated)
    source = module._unsupervised_source
    assert sorted(source.size.tolist()) == [EXAMPLES] * CLASSES
    members = [source.order[first : first + EXAMPLES] // EXAMPLES for first in source.first]
    assert sorted(int(true[0]) for true in members if len(set(true.tolist())) == 1) == list(range(CLASSES))


def test_an_autoencoder_finds_separated_classes_and_leaves_the_random_numbers_alone() -> None:
    bank, state = data(UMTRA(), kind=Separated).source("train"), torch.get_rng_state()
    source = CACTUs(CLASSES, Autoencoder(code=8, steps=40, batch_size=32)).source(bank.inputs, EpisodeShape(3, 2, 3))
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (Autoencoder(steps=2, batch_size=4)(bank.inputs[:9]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    members = [source.order[a : a + size] // EXAMPLES for a, size in zip(source.first, source.size, strict=True)]
    assert sorted(set(true.tolist()) == {true[0]} for true in members).count(True) >= CLASSES - 2


def test_codes_are_of_images_of_any_size() -> None:
    for shape in ((3, 3, 10, 13), (2, 1, 28, 28)):
        assert Autoencoder(code=5, steps=1, batch_size=2)(torch.randint(256, shape, dtype=torch.uint8)).shape[1] == 5


def run_of(folder: Path, norm: str = "running", **of: Any) -> tuple[str, Conv4]:
    """What the command line leaves of a training: a checkpoint that says what it is of."""
    trained = ProtoNet(conv4(norm=norm))
    plain = {"class_path": "lightning_meta.backbones.Conv4", "init_args": dict(image_size=16, hidden=6, norm=norm)}
    made = {"_class_path": "lightning_meta.algorithms.ProtoNet", "backbone": plain} | of
    made["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
    content = {"state_dict": trained.state_dict(), "global_step": 3, "hyper_parameters": made}
    torch.save(content | {"pytorch-lightning_version": pl.__version__}, folder / "last.ckpt")
    return str(folder), trained.backbone


def test_an_embedding_is_that_of_the_run_and_labels_are_never_read(tmp_path: Path) -> None:
    run, trained = run_of(tmp_path)
    tasks = CACTUs(6, embedding=run)
    x = torch.randint(256, (20, 1, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(trained.eval()(x / 255), dim=1)
    assert torch.allclose(torch.from_numpy(tasks.features(x)), expected, atol=1e-5)
    assert_same(train(tasks), train(tasks, kind=Relabelled))
    assert f"features=OfRun(run={run})" in data(tasks).trained_on()


def test_a_run_without_fitting_features_is_refused(tmp_path: Path) -> None:
    (tmp_path / "transductive").mkdir()
    (tmp_path / "unnamed").mkdir()
    unnamed = run_of(tmp_path / "unnamed", _class_path=None)[0]
    for run, message in (
        (run_of(tmp_path / "transductive", "transductive")[0], "norm: running"),
        (unnamed, "does not say of which class it is"),
        ("nothing", "data.unsupervised.embedding=nothing: there is neither a file nor a run"),
    ):
        with pytest.raises(ConfigError, match=message):
            data(CACTUs(6, embedding=run))
    with pytest.raises(ConfigError, match="in_channels and image_size"):
        OfRun(run_of(tmp_path)[0])(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="two answers"):
        CACTUs(6, Pixels(), embedding="x")


def test_small_clusters_are_never_drawn_and_rows_are_those_of_their_cluster() -> None:
    cluster = np.array([0] * 3 + [1] * 5 + [2] * 1 + [3] * 6)[torch.randperm(15, generator=torch.Generator())]
    bank = ClusterBank.of(torch.arange(15)[:, None, None, None].byte(), cluster, smallest=4)
    assert sorted(bank.size.tolist()) == [5, 6]
    rows = bank.draw(episode_keys(0, 0, range(50)), EpisodeShape(2, 2, 2)).rows[:, 0]
    assert all(len(set(cluster[row])) == 1 for row in rows.flatten(0, 1).numpy())
    assert set(cluster[rows.numpy()].flatten()) == {1, 3}


def test_partitions_differ_and_an_episode_is_of_one() -> None:
    source = data(CACTUs(6, Pixels(4), partitions=2))._unsupervised_source
    first, second = (
        {frozenset(bank.order[a : a + s].tolist()) for a, s in zip(bank.first, bank.size, strict=True)}
        for bank in source.views.values()
    )
    assert first != second


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    x = torch.randint(256, (40, 1, 5, 5), dtype=torch.uint8)
    centred = x.flatten(1).double() / 255 - (x.flatten(1).double() / 255).mean(0)
    u, s, _ = torch.linalg.svd(centred)
    expected = (u[:, :3] * s[:3]).abs().float()
    assert torch.allclose(torch.from_numpy(Pixels(3)(x)).abs().flip(1), expected, atol=1e-5)


def test_features_of_a_run_are_those_of_its_backbone(tmp_path: Any) -> None:
    trained = conv4(norm="running")
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    x = torch.randint(256, (600, 1, 16, 16), dtype=torch.uint8)
    found = torch.from_numpy(OfBackbone(conv4(norm="running"), str(tmp_path / "weights.pt"))(x))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(trained.eval()(x / 255), dim=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_was_learned_from_is_stated() -> None:
    assert data(FEW).trained_on().endswith("without labels (CACTUs(clusters=6, features=Pixels(components=4), "
                                           "partitions=1, seed=0))")  # fmt: skip


def test_algorithms_learn_from_it() -> None:
    module = ProtoNet(conv4(norm="running"))
    fit(module, data(UMTRA(), meta_batch_size=4, steps_per_epoch=5), 5)
    assert module.trainer.global_step == 5


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (lambda: UMTRA(), {"labels": "fixed"}, "leave labels and task_augmentation out"),
        (lambda: UMTRA(), {"task_augmentation": ["rotate"]}, "leave labels and task_augmentation out"),
        (lambda: UMTRA(), {"variable": UniformTasks()}, "train out of variable_splits"),
        (lambda: AAL(), {"train": ShapeOverride(n_way=80)}, "takes 160 images, but there are 144"),
        (lambda: CACTUs(145), {}, "clusters=145, but there are 144"),
        (lambda: CACTUs(100, Pixels(4)), {}, r"of the 100 clusters .* n_way=3; take fewer clusters"),
        (lambda: CACTUs(5, Pixels(300)), {}, "components=300, but an image has 256 pixels"),
        (lambda: UMTRA({}), {}, "queries would be the support images"),
        (lambda: UMTRA({"rotat": 30.0}), {}, "data.unsupervised.ranges has rotat=30"),
        (lambda: OfBackbone(Conv4(norm="transductive"), "x"), {}, "norm: running"),
    ],
)
def test_what_cannot_be_is_said(tasks: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data(tasks(), **settings)


def test_algorithms_that_name_classes_and_mixed_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="learns to name the classes"):
        fit(Baseline(conv4(norm="running")), Blobs(unsupervised=UMTRA(), n_query=5), 1)
    with pytest.raises(ConfigError, match="leave it out of mixed data"):
        Mixed({"blobs": Blobs(unsupervised=UMTRA())})
