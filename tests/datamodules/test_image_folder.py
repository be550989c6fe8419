import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lightning_meta.cli import main
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.class_split import ClassSplit, share_out
from lightning_meta.datamodules.images import image_folder
from lightning_meta.datamodules.images.image_folder import SUFFIXES, ImageFolder, read_image
from lightning_meta.errors import ConfigError, DataError, UserError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
ALL = [f"class_{letter}" for letter in "abcdefghij"]
HALVES = ClassSplit(fractions=(0.5, 0.3, 0.2))


def colour(name: str) -> tuple[int, int, int]:
    """A colour that tells which of `ALL` an image is of."""
    return (20 * ALL.index(Path(name).name), 100, 200)


def fill(folder: Path, name: str, images: int = 3) -> None:
    (folder / name).mkdir(parents=True)
    for index in range(images):
        Image.new("RGB", (40, 30), colour(name)).save(folder / name / f"{index}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten classes of one colour each; class_a has 3 images, class_b 4 and so on."""
    for number, name in enumerate(ALL):
        fill(tmp_path / "birds", name, 3 + number)
    return tmp_path / "birds"


@pytest.fixture
def lists(root: Path) -> ClassSplit:
    for split, names in {"train": ALL[:6], "val": ALL[6:8], "test": ALL[8:]}.items():
        (root / f"{split}.txt").write_text("\n".join([*names, "", ""]), encoding="utf-8-sig")
    return ClassSplit(train="train.txt", val="val.txt", test="test.txt")


def by_folder(root: Path) -> None:
    """Sort the classes into the folders train, val and test."""
    for split, names in {"train": ALL[:6], "val": ALL[6:8], "test": ALL[8:]}.items():
        for name in names:
            (root / split).mkdir(exist_ok=True)
            (root / name).rename(root / split / name)


def load(root: Path, split: Split = "train", how: ClassSplit = HALVES, **kwargs: object) -> ClassBank:
    datamodule = ImageFolder(str(root), 8, split=how, **{"n_way": 2, "n_query": 2, **kwargs})
    datamodule.prepare_data()
    return datamodule.load_source(split)


@pytest.mark.parametrize("stream", [False, True])
def test_the_classes_of_an_episode_have_the_names_of_their_folders(root: Path, stream: bool) -> None:
    data = ImageFolder(str(root), 8, split=HALVES, n_way=2, k_shot=2, n_query=1)
    data.prepare_data()
    data.setup("fit")
    data.needs = frozenset({"stream"} if stream else ())
    for episode in range(5):
        support, _ = data.dataset("train")[episode]
        found = data.names_in("train", episode)
        assert len(found) == 2
        for image, label in zip(support.x, support.y.tolist(), strict=True):
            assert tuple((255 * image[:, 0, 0]).round().int().tolist()) == colour(found[label])


def names(bank: ClassBank) -> list[str]:
    """Which class each of the bank's classes is, by the colour that all its images have."""
    found = []
    for first, size in zip(bank.first, bank.size, strict=True):
        pixels = bank.inputs[first : first + size].permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)
        assert len(pixels) == 1
        found.append(next(name for name in ALL if colour(name) == tuple(pixels[0].tolist())))
    return found


def test_classes_may_differ_in_size() -> None:
    classes = [torch.full((size, 1, 2, 2), size, dtype=torch.uint8) for size in (4, 2, 3)]
    bank = ClassBank.from_ragged(classes)
    assert bank.inputs[:, 0, 0, 0].tolist() == [4, 4, 4, 4, 2, 2, 3, 3, 3]
    assert bank.first.tolist() == [0, 4, 6] and bank.size.tolist() == [4, 2, 3]
    episode = bank.sample(np.arange(50, dtype=np.uint64), EpisodeShape(3, 1, 1))
    # Support and query of a label are of the same class, and the three labels are of the three classes.
    assert_close(episode.support.x, episode.query.x)
    assert_close((episode.support.x[:, :, 0, 0, 0] * 255).round().sum(1), torch.full((50,), 9.0))


def test_folders_split_the_classes(root: Path) -> None:
    by_folder(root)
    assert {split: names(load(root, split, ClassSplit())) for split in SPLITS} == {
        "train": ALL[:6],
        "val": ALL[6:8],
        "test": ALL[8:],
    }
    assert load(root, "val", ClassSplit()).size.tolist() == [9, 10]


def test_lists_split_the_classes(root: Path, lists: ClassSplit) -> None:
    assert {split: names(load(root, split, lists)) for split in SPLITS} == {
        "train": ALL[:6],
        "val": ALL[6:8],
        "test": ALL[8:],
    }


def test_lists_may_be_elsewhere_and_name_some_classes(root: Path, lists: ClassSplit, tmp_path: Path) -> None:
    lists.val = str(tmp_path / "val.txt")
    Path(lists.val).write_text("class_h/\n./class_g")
    assert names(load(root, "val", lists)) == ["class_h", "class_g"]
    Path(lists.val).write_text("class_h")
    assert names(load(root, "val", lists)) == ["class_h"]


def test_fractions_share_out_all_classes(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = {split: names(load(root, split)) for split in SPLITS}
    assert {split: len(of_split) for split, of_split in found.items()} == {"train": 5, "val": 3, "test": 2}
    assert sorted(name for of_split in found.values() for name in of_split) == ALL
    for split, of_split in found.items():
        assert f"{len(of_split)} classes for {split}: {', '.join(of_split)}." in caplog.text


def test_the_shuffle_depends_on_the_seed_alone() -> None:
    """The names are frozen: a published split must stay what it was."""
    assert share_out(ALL, (0.5, 0.3, 0.2), 0) == {
        "train": ["class_a", "class_b", "class_e", "class_f", "class_i"],
        "val": ["class_c", "class_d", "class_h"],
        "test": ["class_g", "class_j"],
    }
    many = [f"{number:03d}" for number in range(100)]
    splits = [share_out(many, (0.64, 0.16, 0.2), seed) for seed in range(200)]
    assert {tuple(len(split[name]) for name in SPLITS) for split in splits} == {(64, 16, 20)}
    # Each class is in the test split of a fifth of the seeds: 40, give or take four standard deviations of 5.7.
    in_test = [sum(name in split["test"] for split in splits) for name in many]
    assert min(in_test) > 17 and max(in_test) < 63


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG"])
def test_formats_are_read(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (60, 40), (200, 100, 50))
    image.save(tmp_path / f"image{suffix}")
    read = read_image(tmp_path / f"image{suffix}", 16, 3)
    assert read.shape == (3, 16, 16) and read.dtype == torch.uint8
    assert_close(read.float().mean((1, 2)), torch.tensor([200.0, 100.0, 50.0]), atol=8, rtol=0)


@pytest.mark.parametrize("turned", [False, True])
def test_the_centre_is_cut_out(tmp_path: Path, turned: bool) -> None:
    """Of 30 x 10 pixels in three squares, red, green and blue, the green one stays."""
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    for square in range(3):
        pixels[:, 10 * square : 10 * square + 10, square] = 255
    image = Image.fromarray(pixels)
    (image.transpose(Image.Transpose.ROTATE_90) if turned else image).save(tmp_path / "image.png")
    read = read_image(tmp_path / "image.png", 10, 3)
    assert_close(read, torch.tensor([0, 255, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 10, 10))
    assert read_image(tmp_path / "image.png", 5, 3)[:, 2, 2].tolist() == pytest.approx([0, 255, 0], abs=5)


def test_a_large_jpeg_keeps_its_content(tmp_path: Path) -> None:
    """Decoding at a fraction of the size must not shift or crop: the four quarters have grey levels of their own."""
    pixels = np.kron(np.array([[0, 80], [160, 240]], dtype=np.uint8), np.ones((400, 400), dtype=np.uint8))
    Image.fromarray(pixels).save(tmp_path / "image.jpg", quality=95)
    read = read_image(tmp_path / "image.jpg", 20, 1)[0].float()
    quarters = torch.stack([read[:9, :9], read[:9, 11:], read[11:, :9], read[11:, 11:]]).mean((1, 2))
    assert_close(quarters, torch.tensor([0.0, 80.0, 160.0, 240.0]), atol=3, rtol=0)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20), "black")
    image.paste((255, 255, 255), (0, 0, 20, 10))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # "turned by 180 degrees"
    image.save(tmp_path / "image.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "image.jpg", 20, 1)[0]
    assert read[:8].max() < 30 and read[12:].min() > 225


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_what_is_transparent_is_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 10, 20))
    image.save(tmp_path / f"image{suffix}")
    read = read_image(tmp_path / f"image{suffix}", 20, 3)
    assert read[:, 10, 2].tolist() == [255, 0, 0]
    assert read[:, 10, 17].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.full((8, 8), 100 * 256 + 7, dtype=np.uint16)).save(tmp_path / f"image{suffix}")
    assert_close(read_image(tmp_path / f"image{suffix}", 8, 3), torch.full((3, 8, 8), 100, dtype=torch.uint8))


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=r"image.tif cannot be read \(mode F: 32 bits .*8 or 16 bits"):
        read_image(tmp_path / "image.tif", 8, 1)


def test_grey_images_have_one_channel(root: Path) -> None:
    assert load(root, channels=1).inputs.shape[1:] == (1, 8, 8)


def test_hidden_files_and_other_files_are_passed_over(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("._0.png", ".DS_Store"):
        (root / "class_a" / name).write_bytes(b"not an image")
    for name in ("1.heic", "2.heic", "Thumbs.db"):
        (root / "class_b" / name).write_bytes(b"not an image")
    (root / ".git").mkdir()
    (root / "notes.txt").write_text("not a class")
    sizes = {name: size for split in SPLITS for name, size in sizes_of(load(root, split)).items()}
    assert sizes == {name: 3 + number for number, name in enumerate(ALL)}
    assert "passing over files that are no images: 2 with the suffix '.heic', 1 with the suffix '.db'." in caplog.text


def sizes_of(bank: ClassBank) -> dict[str, int]:
    return dict(zip(names(bank), bank.size.tolist(), strict=True))


def test_the_small_images_are_made_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "SMALL_IMAGES", tmp_path / "small")
    before = sorted(root.rglob("*"))
    expected = {split: load(root, split).inputs for split in SPLITS}
    monkeypatch.setattr(image_folder, "read_image", None)
    for split in SPLITS:
        assert_close(load(root, split).inputs, expected[split])
    assert len(list(tmp_path.glob("small/few_shot_3x8x8_*.pt"))) == 1
    assert sorted(root.rglob("*")) == before, "the user's folder stays as it is"


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "repainted", "touched", "setting"])
def test_a_change_is_noticed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.setattr(image_folder, "SMALL_IMAGES", tmp_path / "small")
    load(root)
    path = root / "class_j" / "0.png"
    status = path.stat()
    if change == "added":
        shutil.copy(path, root / "class_j" / "new.png")
    elif change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(root / "class_j" / "new.png")
    elif change == "repainted":
        Image.new("RGB", (50, 60), colour("class_j")).save(path, compress_level=0)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "touched":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    load(root, channels=1 if change == "setting" else 3)
    assert len(list(tmp_path.glob("small/few_shot_*.pt"))) == 2


def test_a_folder_for_the_small_images_may_be_chosen(root: Path, tmp_path: Path) -> None:
    load(root, cache=str(tmp_path / "cache" / "of_birds"))
    assert not list(root.glob("*.pt")) and len(list(tmp_path.glob("cache/of_birds/few_shot_*.pt"))) == 1
    (tmp_path / "occupied").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*occupied.* --data.cache"):
        load(root, cache=str(tmp_path / "occupied"))


def test_episodes_are_drawn(root: Path) -> None:
    datamodule = ImageFolder(str(root), 8, split=HALVES, n_way=2, n_query=2, train=ShapeOverride(n_way=5))
    datamodule.prepare_data()
    datamodule.setup("fit")
    episode = next(iter(datamodule.train_dataloader()))
    assert episode.support.x.shape == (4, 5, 3, 8, 8)
    assert episode.query.x.shape == (4, 10, 3, 8, 8)


def refused(root: Path, how: ClassSplit, kind: type[UserError] = DataError, **kwargs: object) -> str:
    with pytest.raises(kind) as caught:
        load(root, how=how, **kwargs)
    assert not list(root.glob("*.pt"))
    return str(caught.value)


def test_a_missing_root_is_reported(tmp_path: Path) -> None:
    assert f"{tmp_path / 'bird'} is no folder; --data.root" in refused(tmp_path / "bird", HALVES)


@pytest.mark.parametrize("how", [HALVES, ClassSplit()], ids=["fractions", "folders"])
def test_a_root_without_class_folders_is_reported(tmp_path: Path, how: ClassSplit) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    assert f"{tmp_path} has no class folders" in refused(tmp_path, how)


def test_a_root_that_is_not_split_is_reported_with_the_three_ways(root: Path) -> None:
    (root / "train").mkdir()
    message = refused(root, ClassSplit())
    assert "of the folders train, val and test it has not test, val" in message
    assert "11 folders" in message and "--data.split.fractions" in message and "--data.split.train" in message


@pytest.mark.parametrize(
    ("how", "facts"),
    [
        (
            ClassSplit(train="a.txt", val="b.txt", test="c.txt", fractions=(0.5, 0.3, 0.2)),
            [
                "split.train=a.txt, split.val=b.txt, split.test=c.txt and split.fractions=[0.5, 0.3, 0.2]",
                "--data.split.fractions []",
            ],
        ),
        (ClassSplit(train="a.txt"), ["split.train=a.txt is set, but not split.val, split.test"]),
        (ClassSplit(fractions=(0.5, 0.3, 0.3)), ["[0.5, 0.3, 0.3] sum to 1.1", "sum to 1"]),
        (ClassSplit(fractions=(0.5, 0.5, 0.0)), ["three positive numbers"]),
        (ClassSplit(fractions=(0.5, 0.3, 0.2), seed=-1), ["split.seed=-1"]),
    ],
)
def test_settings_that_disagree_are_refused(root: Path, how: ClassSplit, facts: list[str]) -> None:
    message = refused(root, how, ConfigError)
    assert all(fact in message for fact in facts), message


def test_fractions_of_a_root_that_is_already_split_are_refused(root: Path) -> None:
    by_folder(root)
    assert "already split into the folders train, val and test" in refused(root, HALVES, ConfigError)


@pytest.mark.parametrize(("kwargs", "fact"), [({"channels": 2}, "channels=2"), ({"image_size": 0}, "image_size=0")])
def test_impossible_images_are_refused(root: Path, kwargs: dict[str, int], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        ImageFolder(str(root), split=HALVES, **kwargs)


def test_a_class_in_two_splits_is_refused(root: Path, lists: ClassSplit) -> None:
    (root / "val.txt").write_text("class_g\nclass_a\n")
    assert f"class_a is in {root / 'train.txt'} and in {root / 'val.txt'}" in refused(root, lists)
    by_folder(root)
    fill(root / "test", "class_b")
    assert f"class_b is in {root / 'train'} and in {root / 'test'}" in refused(root, ClassSplit())


def test_a_class_listed_twice_is_refused(root: Path, lists: ClassSplit) -> None:
    (root / "val.txt").write_text("class_g\nclass_g/\n")
    assert f"class_g is in {root / 'val.txt'} and in {root / 'val.txt'}" in refused(root, lists)


def test_listed_classes_without_a_folder_are_reported(root: Path, lists: ClassSplit) -> None:
    (root / "val.txt").write_text("class_g\nclass_G\nclass_z\n")
    message = refused(root, lists)
    assert f"{root / 'val.txt'} lists 2 of 3 classes that have no folder in {root}: class_G, class_z." in message


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "no text"])
def test_an_unreadable_list_is_named(root: Path, lists: ClassSplit, content: bytes | None) -> None:
    (root / "test.txt").unlink()
    if content:
        (root / "test.txt").write_bytes(content)
    message = refused(root, lists)
    assert f"{root / 'test.txt'}, the list of the test classes, cannot be read" in message
    assert "--data.split.test" in message


def test_a_split_without_classes_is_reported(root: Path, lists: ClassSplit) -> None:
    assert "a fraction of 0.01 of 10 classes leaves none for val" in refused(
        root, ClassSplit(fractions=(0.9, 0.01, 0.09))
    )
    (root / "val.txt").write_text("\n\n")
    assert f"{root / 'val.txt'} has no classes" in refused(root, lists)
    by_folder(root)
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    assert f"{root / 'test'} has no classes" in refused(root, ClassSplit())


def test_a_class_without_images_is_named(root: Path) -> None:
    (root / "class_k").mkdir()
    (root / "class_k" / "photo.heic").write_bytes(b"")
    assert f"the class folder {root / 'class_k'} has no images (.png, .jpg" in refused(root, HALVES)


def test_the_smallest_class_is_named_when_it_is_too_small(root: Path, lists: ClassSplit) -> None:
    datamodule = ImageFolder(str(root), 8, split=lists, n_way=2, k_shot=1, n_query=2, train=ShapeOverride(n_query=4))
    datamodule.prepare_data()
    with pytest.raises(ConfigError) as caught:
        datamodule.setup("fit")
    assert f"train episodes need 5 images of every class (k_shot=1 + n_query=4), but {root / 'class_a'} has 3" in str(
        caught.value
    )
    assert datamodule.load_source("val").size.tolist() == [9, 10]


@pytest.mark.parametrize(("kept", "reason"), [(0, "not an image"), (60, ".+")], ids=["empty", "truncated"])
def test_a_damaged_image_is_named(root: Path, kept: int, reason: str) -> None:
    path = root / "class_c" / "1.png"
    path.write_bytes(path.read_bytes()[:kept])
    assert re.match(rf"{path} cannot be read \({reason}\). Replace or remove it.", refused(root, HALVES))


def command(root: Path, *arguments: str) -> list[str]:
    """One step of testing with the config of this data set."""
    configs = Path(__file__).parents[2] / "configs"
    quick = "--trainer.fast_dev_run true --trainer.logger false --trainer.accelerator cpu --data.image_size 28"
    parts = [
        "--model",
        str(configs / "model/nearest_neighbour.yaml"),
        "--data",
        str(configs / "data/image_folder.yaml"),
    ]
    shape = "--data.n_way 2 --data.n_query 1 --data.val_episodes 2 --data.test_episodes 2"
    return ["test", *parts, "--data.root", str(root), *quick.split(), *shape.split(), *arguments]


def test_the_command_line_splits_in_three_ways(
    root: Path, lists: ClassSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split_of(*arguments: str) -> ClassSplit:
        datamodule = main(command(root, *arguments)).datamodule
        assert isinstance(datamodule, ImageFolder)
        return datamodule.class_split

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    assert split_of("--data.split.seed", "7") == ClassSplit(fractions=(0.64, 0.16, 0.2), seed=7)
    three_lists = [f"--data.split.{split}={split}.txt" for split in SPLITS]
    assert split_of("--data.split.fractions", "[]", *three_lists) == lists
    with pytest.raises(SystemExit, match=r"split.train=train.txt, .*split.fractions=.* are two ways"):
        main(command(root, *three_lists))
    by_folder(root)
    assert split_of("--data.split.fractions", "[]") == ClassSplit()
