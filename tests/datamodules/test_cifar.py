import hashlib
import logging
import pickle
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision import datasets

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.images import cifar
from lightning_meta.datamodules.images.cifar import CIFAR, CIFARFS, FC100
from lightning_meta.datamodules.images.cifar_split import CLASSES, SUPERCLASSES, cifar_fs_split, fc100_split
from lightning_meta.errors import DataError

FEW = ["apple", "bee", "maple_tree", "whale"]
FEW_SPLIT: dict[Split, list[str]] = {"train": ["apple", "bee"], "val": ["maple_tree"], "test": ["whale"]}
TRAIN, TEST = 5, 2  # images of each class in the small data set's two parts


def pixels(name: str, index: int) -> np.ndarray:
    """An image `(32, 32, 3)` that only this class and index have, the same in every process."""
    return np.random.default_rng([zlib.crc32(name.encode()), index]).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def few_classes_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(cifar, "CLASSES", FEW)
    monkeypatch.setattr(cifar, "EXAMPLES", TRAIN + TEST)
    monkeypatch.setattr(cifar, "download_and_extract_archive", no_network)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A root with a folder of PNG files for each class; their order is not that of torchvision's files."""
    for name in FEW:
        for index in range(TRAIN + TEST):
            path = tmp_path / "cifar100" / name / f"{(index * 3) % 7:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(name, index)).save(path)
    return tmp_path


@pytest.fixture
def pickles(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root with torchvision's files for the same images, whose checksums torchvision is told."""
    root = tmp_path_factory.mktemp("pickles")
    folder = root / datasets.CIFAR100.base_folder
    folder.mkdir()
    md5 = {}

    def write(name: str, content: object) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for part, indices in {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST)}.items():
        shown = [(name, index) for index in indices for name in FEW]
        data = np.stack([pixels(name, index).transpose(2, 0, 1).ravel() for name, index in shown])
        write(part, {"data": data, "fine_labels": [FEW.index(name) for name, _ in shown]})
    write("meta", {"fine_label_names": FEW})
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5["meta"]})
    yield root


def load(root: Path, split: Split = "train", **kwargs: bool) -> ClassBank:
    datamodule = CIFAR(FEW_SPLIT, root=str(root), **kwargs)
    datamodule.prepare_data()
    return datamodule.load_source(split)


@pytest.mark.parametrize(
    ("splits", "published"),
    [
        (
            cifar_fs_split(),
            {
                "train": (64, "e40c037757741c61e50829c14d921fd10476dfc74ca34da755afdcf05e75b9c1"),
                "val": (16, "e02b317c48c94270f9d5385a65f92a748210ed6c14138a0d3ac79a5fdc571f07"),
                "test": (20, "2a35675fcdddfebb30b999bbeda046762a08705273587d19c96d3c3ab9dd8142"),
            },
        ),
        (
            fc100_split(),
            {
                "train": (60, "af96f5ba1e11891514dde57d03760d159c63a2fe0c86e7c982fe2847d08081e5"),
                "val": (20, "746350fa6cdcb340e4dae927dce61d85ba07f1decc246f7a0780766b265ee183"),
                "test": (20, "9df56bf75fee16f6de024cf5c5d1bd7a36dbeb7819419086e3d0d01ee7bf7928"),
            },
        ),
    ],
    ids=["CIFAR-FS", "FC100"],
)
def test_splits_are_the_published_ones(splits: dict[Split, list[str]], published: dict[str, tuple[int, str]]) -> None:
    """The checksums were computed from torchmeta's lists."""
    found = {
        split: (len(names), hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest())
        for split, names in splits.items()
    }
    assert found == published
    assert sorted(name for names in splits.values() for name in names) == CLASSES
    assert len(set(CLASSES)) == 100


def test_superclasses_of_fc100_are_in_one_split_each() -> None:
    splits = {split: set(names) for split, names in fc100_split().items()}
    homes = [sum(bool(set(names) & of_split) for of_split in splits.values()) for names in SUPERCLASSES.values()]
    assert homes == [1] * 20


@pytest.mark.parametrize(("datamodule", "sizes"), [(CIFARFS, (64, 16, 20)), (FC100, (60, 20, 20))])
def test_datamodules_have_their_own_split(datamodule: type[CIFARFS | FC100], sizes: tuple[int, int, int]) -> None:
    made = datamodule(root="elsewhere", n_way=3, download=False)
    assert tuple(len(made.splits[split]) for split in ("train", "val", "test")) == sizes
    assert (made.n_way, made.download, made.name) == (3, False, datamodule.__name__)
    assert made.cache == Path("elsewhere/cifar100/cifar100.pt")


@pytest.mark.parametrize("source", ["folders", "pickles"])
def test_each_class_has_its_images_from_either_source(request: pytest.FixtureRequest, source: str) -> None:
    root = request.getfixturevalue(source)
    for split, names in FEW_SPLIT.items():
        bank = load(root, split)
        assert bank.inputs.shape == (7 * len(names), 3, 32, 32) and bank.inputs.dtype == torch.uint8
        for name, first, size in zip(names, bank.first, bank.size, strict=True):
            found = {image.permute(1, 2, 0).numpy().tobytes() for image in bank.inputs[first : first + size]}
            assert found == {pixels(name, index).tobytes() for index in range(7)}


def test_both_sources_give_the_same_tensors(folders: Path, pickles: Path) -> None:
    for split in FEW_SPLIT:
        assert_close(load(folders, split).inputs, load(pickles, split).inputs, rtol=0, atol=0)


def test_folders_are_preferred_to_pickles(folders: Path, pickles: Path) -> None:
    (pickles / "cifar-100-python").rename(folders / "cifar-100-python")
    Image.new("RGB", (32, 32), (1, 2, 3)).save(folders / "cifar100" / "whale" / "000.png")
    assert (load(folders, "test").inputs.view(7, 3, -1) == torch.tensor([1, 2, 3]).view(3, 1)).all((1, 2)).sum() == 1


def test_episodes_are_drawn(folders: Path) -> None:
    datamodule = CIFAR(FEW_SPLIT, root=str(folders), n_way=1, n_query=5, train=ShapeOverride(n_way=2))
    datamodule.prepare_data()
    datamodule.setup("fit")
    episode = next(iter(datamodule.train_dataloader()))
    assert episode.support.x.shape == (4, 2, 3, 32, 32)
    assert episode.query.x.shape == (4, 10, 3, 32, 32)


def test_what_is_missing_is_downloaded(pickles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, fetched = load(pickles).inputs, []

    def unpack(url: str, folder: str, md5: str) -> None:
        fetched.append((url, md5))
        (Path(folder) / "cifar-100-python.tar.gz").write_bytes(b"an archive")
        shutil.copytree(pickles / "cifar-100-python", Path(folder) / "cifar-100-python")

    monkeypatch.setattr(cifar, "download_and_extract_archive", unpack)
    assert_close(load(tmp_path).inputs, expected)
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    assert fetched == [(url, "eb9058c3a382ffc7106e4002c42a8d85")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-100-python", "cifar100"]


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(url: str, folder: str, md5: str) -> None:
        (Path(folder) / "cifar-100-python").mkdir()
        raise ConnectionResetError("connection lost")

    monkeypatch.setattr(cifar, "download_and_extract_archive", break_off)
    with pytest.raises(DataError, match=r"the download failed \(connection lost\)"):
        load(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("download", "reason"), [(True, "the download failed .*no network"), (False, "downloading is off")]
)
def test_without_data_one_message_says_where_to_get_them(tmp_path: Path, download: bool, reason: str) -> None:
    (tmp_path / "cifar100" / "splits").mkdir(parents=True)  # a folder, but not of a class
    with pytest.raises(DataError, match=reason) as caught:
        load(tmp_path, download=download)
    for fact in (
        f"{tmp_path / 'cifar100'} has class folders",
        str(tmp_path / "cifar-100-python"),
        f"Unpack https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz in {tmp_path}",
        "<class>/<name>.png",
        "--data lightning_meta.datamodules.Glyphs",
    ):
        assert fact in str(caught.value)


@pytest.mark.parametrize("count", [0, 6, 8])
def test_a_wrong_number_of_images_is_reported(folders: Path, count: int) -> None:
    folder = folders / "cifar100" / "maple_tree"
    shutil.copy(folder / "000.png", folder / "007.png")
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()
    with pytest.raises(DataError) as caught:
        load(folders)
    assert str(caught.value) == (
        f"{folder} has {count} images instead of 7. Replace {folders / 'cifar100'} by an intact copy, "
        "or delete it to have CIFAR-100 downloaded."
    )


def test_hidden_files_are_passed_over(folders: Path) -> None:
    (folders / "cifar100" / "apple" / "._000.png").write_bytes(b"not an image")
    (folders / "cifar100" / "apple" / ".DS_Store").write_bytes(b"not an image")
    assert len(load(folders).inputs) == 14


@pytest.mark.parametrize(("kept", "reason"), [(0, "not an image"), (200, ".+")], ids=["empty", "truncated"])
def test_a_damaged_image_is_named(folders: Path, kept: int, reason: str) -> None:
    path = folders / "cifar100" / "whale" / "003.png"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"whale/003.png cannot be read \({reason}\). Replace .*intact"):
        load(folders)
    assert not list(folders.glob("cifar100/*.pt"))


def test_an_image_of_another_size_is_named(folders: Path) -> None:
    Image.new("RGB", (64, 48)).save(folders / "cifar100" / "bee" / "001.png")
    with pytest.raises(DataError, match=r"bee/001.png has 64 x 48 pixels instead of 32 x 32"):
        load(folders)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_pickle_is_named(pickles: Path, name: str, damage: str) -> None:
    path = pickles / "cifar-100-python" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"cifar-100-python/{name} is missing or damaged .*delete it to have it down"):
        load(pickles)


def test_the_cache_is_used_again_and_its_checksum_logged(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(folders).inputs
    for name in FEW:
        shutil.rmtree(folders / "cifar100" / name)
    with caplog.at_level(logging.INFO):
        assert_close(load(folders).inputs, expected)
    cache = folders / "cifar100" / "cifar100.pt"
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert torch.load(cache, weights_only=True)["sha256"] in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "changed image"])
def test_a_damaged_cache_is_reported_with_its_remedy(folders: Path, damage: str) -> None:
    load(folders)
    cache = folders / "cifar100" / "cifar100.pt"
    if damage == "changed image":
        content = torch.load(cache, weights_only=True)
        content["images"][3][6, 2, 31, 31] += 1
        torch.save(content, cache)
    else:
        cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cifar100\.pt is damaged .* Delete it"):
        load(folders)
