"""Optimizees are frozen, and their segments fit together."""

import gzip
import pickle
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torchvision import datasets

from lightning_meta.backbones import MLP
from lightning_meta.core import Batch
from lightning_meta.datamodules import (
    CIFAR10,
    MNIST,
    ImageFolder,
    ImageOptimizees,
    OptimizeeDataModule,
    QuadraticOptimizees,
)
from lightning_meta.datamodules.class_split import ClassSplit
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import CLASSES, SIZE, blobs, conv4


def images(**settings) -> ImageOptimizees:
    few = dict(unroll_steps=6, truncation=2, meta_batch_size=4, batch_size=5)
    data = ImageOptimizees(**(dict(images=blobs(), backbone=MLP(SIZE * SIZE, (4,), "sigmoid")) | few | settings))
    data.setup("fit")
    return data


def quadratics() -> QuadraticOptimizees:
    return QuadraticOptimizees(dimension=3, unroll_steps=6, truncation=2, meta_batch_size=4)


@pytest.fixture(params=[quadratics, images])
def data(request: pytest.FixtureRequest) -> OptimizeeDataModule:
    return request.param()


def test_the_segments_of_a_training_batch_make_up_whole_optimizations(data: OptimizeeDataModule) -> None:
    """They overlap in one batch: the one that judges a segment's end is the first of the next."""
    train = data.dataset("train")
    ids = [data.train_ids(batch, 0, 4) for batch in range(4)]
    assert [list(part) for part in ids] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11], [12, 15, 18, 21]]
    assert [*data.train_ids(1, 0, 2), *data.train_ids(1, 1, 2)] == list(ids[1]), "ranks share a batch out"
    segments = [train.__getitems__(part) for part in ids]
    assert [segment.start.tolist() for segment in segments] == [[0] * 4, [2] * 4, [4] * 4, [0] * 4]
    for before, after in pairwise(segments[:3]):
        assert all(torch.equal(a, b) for a, b in zip(before.theta.values(), after.theta.values(), strict=True))
        assert all(torch.equal(a[:, -1], b[:, 0]) for a, b in zip(before.batches, after.batches, strict=True))
    assert not torch.equal(segments[2].batches.x[:, -1], segments[3].batches.x[:, 0])
    assert len({segment.batches.x.float().sum().item() for segment in segments}) >= 2


def test_an_optimizee_depends_on_seed_split_and_number_alone(data: OptimizeeDataModule) -> None:
    val = data.dataset("val")
    together, alone = val.__getitems__([5, 2]), val.__getitems__([2])
    assert together.batches.x.shape[:2] == (2, 7)
    for a, b in zip(torch.utils._pytree.tree_leaves(together), torch.utils._pytree.tree_leaves(alone), strict=True):
        assert torch.equal(a[1:], b)
    data.unroll_steps = 10  # a longer optimization begins as the shorter one
    longer = data.dataset("val").__getitems__([2])
    assert torch.equal(longer.batches.x[:, :7], alone.batches.x)
    others = [data.dataset("test").__getitems__([2])]
    data.seed = 1
    others.append(data.dataset("val").__getitems__([2]))
    for other in others:
        assert all(not torch.equal(other.theta[n], v) for n, v in longer.theta.items() if v.std() > 0)


def test_quadratics_are_drawn_as_the_paper_says() -> None:
    data = QuadraticOptimizees(unroll_steps=2)
    theta, batches = tree_map(lambda leaf: leaf.double(), data.dataset("val").__getitems__(range(2000))[1:])
    assert torch.equal(batches.x[:, 0], batches.x[:, 2]), "one function in all steps"
    for draws, deviation in ((batches.x[:, 0], 1), (batches.y[:, 0], 1), (theta["theta"], 0.01)):
        assert draws.mean().abs() < 0.05 * deviation
        assert draws.std().item() == pytest.approx(deviation, rel=0.02)
    w, y = batches.x[0, 0], batches.y[0, 0]
    point = torch.linspace(-1, 1, 10).double()
    assert data.loss({"theta": point}, Batch(w, y)).item() == pytest.approx(sum((w @ point - y) ** 2).item())


def test_images_and_labels_belong_together_and_the_loss_is_the_networks() -> None:
    data = images(classes=5, batch_size=400, fc_hidden=(3,))
    bank = data.images.load_source("train")
    theta, (x, y) = data.dataset("val").__getitems__([0])[1:]
    kept = [0, 2, 4, 7, 9]  # of 12, at even distances
    for label, pixels in zip(y[0, 0].tolist(), x[0, 0], strict=True):
        of_class = bank.inputs[bank.first[kept[label]] : bank.first[kept[label]] + bank.size[kept[label]]]
        assert (of_class == pixels).flatten(1).all(1).any()
    assert set(y.unique().tolist()) == set(range(5))
    assert (x[0, 0] != x[0, 1]).any(), "another minibatch in each step"
    p = {name: value[0] for name, value in theta.items()}
    hidden = (x[0, 0].flatten(1) / 255 @ p["backbone.layers.0.weight"].T + p["backbone.layers.0.bias"]).sigmoid()
    hidden = (hidden @ p["fc.layers.0.weight"].T + p["fc.layers.0.bias"]).relu()
    logits = hidden @ p["head.weight"].T + p["head.bias"]
    expected = F.cross_entropy(logits, y[0, 0])
    torch.testing.assert_close(data.loss(p, Batch(x[0, 0], y[0, 0])), expected)
    assert data.facts("test") == {"unroll_steps": 6, "weights": sum(v.numel() for v in p.values()), "classes": 5,
                                  "batch_size": 400}  # fmt: skip


def test_initial_weights_are_those_of_torch_in_distribution() -> None:
    data = images(backbone=conv4())
    theta = data.dataset("val").__getitems__(range(200)).theta
    fan_in = {"backbone.blocks.0.0.weight": 9, "backbone.blocks.1.0.weight": 54, "head.weight": 6, "head.bias": 6}
    for name, inputs in fan_in.items():
        bound = inputs**-0.5
        assert 0.97 * bound < theta[name].abs().max() <= bound
        assert theta[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (theta["backbone.blocks.0.1.weight"] == 1).all() and (theta["backbone.blocks.0.1.bias"] == 0).all()


def test_images_are_shrunk_by_averaging() -> None:
    small, large = images(shrink=2, backbone=MLP(SIZE * SIZE // 4)), images()
    assert small.pixels.shape == (CLASSES * 12, 1, SIZE // 2, SIZE // 2)
    expected = large.pixels[3, 0, :2, 2:4].double().mean()
    assert small.pixels[3, 0, 0, 1].item() == pytest.approx(expected.item(), abs=0.51)


def test_wrong_settings_name_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"\(99,\), but Blobs has \(1, 16, 16\)"):
        images(backbone=MLP(99))
    with pytest.raises(ConfigError, match=r"^classes=13 must be between 2 and the 12 classes of Blobs"):
        images(classes=13)
    with pytest.raises(ConfigError, match="truncation=0"):
        QuadraticOptimizees(truncation=0)
    with pytest.raises(ConfigError, match="batch_size=0"):
        images(batch_size=0)


def write_mnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """A few images in the files that torchvision keeps of MNIST."""
    pixels, labels = (
        np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8),
        np.arange(20, dtype=np.uint8) % 10,
    )
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return pixels, labels


def test_mnist_is_read_from_torchvisions_files(tmp_path: Path) -> None:
    pixels, labels = write_mnist(tmp_path)
    data = MNIST(str(tmp_path), download=False)
    data.prepare_data()
    bank = data.load_source("train")
    assert len(bank.size) == 10 and (bank.size == 2).all()
    assert torch.equal(bank.inputs[bank.first[3] : bank.first[3] + 2, 0], torch.from_numpy(pixels[labels == 3]))
    optimizees = ImageOptimizees(data, MLP(784, (20,), "sigmoid"), unroll_steps=2)
    optimizees.setup("test")
    assert optimizees.dataset("test").__getitems__([0]).batches.x.shape == (1, 3, 128, 1, 28, 28)
    assert optimizees.name == "MLP on MNIST"


def test_cifar_10_is_read_from_torchvisions_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), np.uint8)
    (folder := tmp_path / datasets.CIFAR10.base_folder).mkdir()
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    for name, _ in datasets.CIFAR10.train_list:
        (folder / name).write_bytes(pickle.dumps({"data": pixels.reshape(10, -1), "labels": list(range(10))}))
    data = CIFAR10(str(tmp_path), download=False)
    data.prepare_data()
    bank = data.load_source("test")
    assert bank.inputs.shape == (50, 3, 32, 32) and (bank.size == 5).all()
    assert torch.equal(bank.inputs[bank.first[7]], torch.from_numpy(pixels[7]))


def test_all_classes_of_a_folder_of_images_may_be_learned(tmp_path: Path) -> None:
    for label in range(3):
        (tmp_path / f"class_{label}").mkdir()
        for number in range(2):
            Image.new("L", (4, 4), 50 * label + number).save(tmp_path / f"class_{label}" / f"{number}.png")
    all_for_training = ClassSplit(fractions=(1.0, 0.0, 0.0))
    folder = ImageFolder(str(tmp_path), 4, channels=1, split=all_for_training, k_shot=1, n_query=1)
    folder.prepare_data()
    optimizees = ImageOptimizees(folder, MLP(16), unroll_steps=2)
    optimizees.setup("fit")
    x, y = optimizees.dataset("test").__getitems__([0]).batches
    assert set(x.unique().tolist()) == {0, 1, 50, 51, 100, 101}
    assert torch.equal(x[..., 0, 0, 0] // 50, y)
    with pytest.raises(ConfigError, match="no classes for val"):  # episodes need all three splits
        folder.load_source("val")


def test_missing_files_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"MNIST is not in {tmp_path}.*allow the download"):
        MNIST(str(tmp_path), download=False).prepare_data()
