import hashlib
import logging
import shutil
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image, ImageDraw
from torch.testing import assert_close

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.images import omniglot as omniglot_module
from lightning_meta.datamodules.images.omniglot import Omniglot, shrink, with_rotations
from lightning_meta.datamodules.images.omniglot_split import vinyals_split
from lightning_meta.errors import DataError

FEW: dict[Split, list[str]] = {
    "train": ["images_background/Greek/character01", "images_evaluation/Angelic/character01"],
    "val": ["images_background/Hebrew/character01"],
    "test": ["images_evaluation/Keble/character01", "images_evaluation/Keble/character02"],
}
ALL = [character for characters in FEW.values() for character in characters]
PARTS = ("images_background", "images_evaluation")


def draw(path: Path, character: int, person: int) -> None:
    """A drawing as in the data set: 105 x 105, 1 bit, black on white. Each is a bar in a place of its own."""
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).rectangle((5 + 15 * character, 5 + 4 * person, 15 + 15 * character, 15 + 4 * person), fill=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def centre_of_ink(image: torch.Tensor) -> tuple[int, int]:
    """Row and column of the centre of the ink in `(1, 28, 28)`, in pixels of the drawing."""
    rows, columns = torch.nonzero(image[0] > 127, as_tuple=True)
    return round(float(rows.float().mean() + 0.5) * 3.75), round(float(columns.float().mean() + 0.5) * 3.75)


@pytest.fixture(autouse=True)
def few_characters_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(omniglot_module, "vinyals_split", lambda: FEW)
    monkeypatch.setattr(omniglot_module, "download_url", no_network)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with folders of drawings, as the archives of the data set unpack."""
    for index, character in enumerate(ALL):
        for person in range(20):
            draw(tmp_path / "omniglot" / character / f"{index:04d}_{person + 1:02d}.png", index, person)
    return tmp_path


def zip_folders(folder: Path) -> None:
    """Replace the two folders by archives with the same content, whose checksums are nobody else's."""
    for part in PARTS:
        shutil.make_archive(str(folder / part), "zip", root_dir=folder, base_dir=part)
        shutil.rmtree(folder / part)


def load(root: Path, split: Split = "train", rotations: bool = False) -> ClassBank:
    datamodule = Omniglot(root=str(root), rotations=rotations)
    datamodule.prepare_data()
    source = datamodule.load_source(split)
    assert isinstance(source, ClassBank)
    return source


def test_split_is_the_published_one() -> None:
    """The checksums were computed from the lists published with Prototypical Networks, and again from torchmeta's."""
    published = {
        "train": (1028, "55fb4a4f5b4f8a45bce46451f717e02975d3e80cb8dd062a4f0313d04bb3d2c7"),
        "val": (172, "978680cddffa09877dc452c14f7990a6931c424ce606a698d10f91b3f2736c77"),
        "test": (423, "cd7a4fc76e0d3b993ca34d27c28fdaaad7022606473da6c78ce24218787a9ab4"),
    }
    splits = vinyals_split()
    found = {
        split: (len(names), hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest())
        for split, names in splits.items()
    }
    assert found == published
    assert len({name for names in splits.values() for name in names}) == 1623


def test_ink_is_255_on_0_and_a_thin_line_stays_visible(tmp_path: Path) -> None:
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).line((20, 10, 20, 90), fill=0, width=3)
    image.save(tmp_path / "line.png")
    small = shrink((tmp_path / "line.png").read_bytes())
    assert small.shape == (1, 28, 28) and small.dtype == torch.uint8
    assert small[0, :, 15:].max() == 0
    assert small[0, 5:22].amax(1).min() > 127


def test_sources_hold_the_drawings_of_their_split_in_order(root: Path) -> None:
    for split, characters in FEW.items():
        images = load(root, split).inputs.view(len(characters), 20, 1, 28, 28)
        for row, character in enumerate(characters):
            for person in (0, 7, 19):
                expected = (10 + 4 * person, 10 + 15 * ALL.index(character))
                assert centre_of_ink(images[row, person]) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize(("rotations", "classes"), [(False, 2), (True, 8)])
def test_rotations_are_classes(root: Path, rotations: bool, classes: int) -> None:
    source = load(root, rotations=rotations)
    assert len(source.size) == classes
    assert len(source.inputs) == 20 * classes


def test_rotated_classes_are_quarter_turns_of_every_example() -> None:
    images = torch.randint(256, (3, 2, 1, 4, 4), dtype=torch.uint8)
    rotated = with_rotations(images)
    for quarter_turns in range(4):
        for index in range(3):
            for example in range(2):
                turned = torch.rot90(images[index, example, 0], quarter_turns)
                assert_close(rotated[3 * quarter_turns + index, example, 0], turned)


def test_episodes_are_drawn(root: Path) -> None:
    datamodule = Omniglot(root=str(root), n_way=4, n_query=5)
    datamodule.prepare_data()
    datamodule.setup("fit")
    episode = next(iter(datamodule.train_dataloader()))
    assert episode.support.x.shape == (4, 4, 1, 28, 28)
    assert episode.query.x.shape == (4, 20, 1, 28, 28)
    assert episode.support.x.amax((-1, -2)).min() > 0.5


@pytest.mark.parametrize("archived", [False, True], ids=["folders", "archives"])
@pytest.mark.parametrize("folder", ["omniglot", "omniglot-py"])
def test_folders_and_archives_are_found_in_either_place(root: Path, folder: str, archived: bool) -> None:
    expected = load(root).inputs
    (root / "omniglot" / "omniglot_28.pt").unlink()
    (root / "omniglot").rename(root / folder)
    if archived:
        zip_folders(root / folder)
    assert_close(load(root).inputs, expected)


def test_files_that_are_no_drawings_are_passed_over(root: Path) -> None:
    character = root / "omniglot" / ALL[0]
    for name in (".DS_Store", "._0000_01.png", "Thumbs.db"):
        (character / name).write_bytes(b"not a drawing")
    (root / "omniglot" / "images_background" / "contact_sheet.png").write_bytes(b"not a drawing")
    assert len(load(root).inputs) == 40


def test_what_is_missing_is_downloaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere, fetched = root / "omniglot", root / "elsewhere", []
    expected = load(root).inputs
    (folder / "omniglot_28.pt").unlink()
    zip_folders(folder)
    folder.rename(elsewhere)

    def copy(url: str, target: Path, filename: str, md5: str) -> None:
        fetched.append((url, md5))
        shutil.copy(elsewhere / filename, target)

    monkeypatch.setattr(omniglot_module, "download_url", copy)
    assert_close(load(root).inputs, expected)
    prefix = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    assert fetched == [
        (f"{prefix}/images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
        (f"{prefix}/images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
    ]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["images_background.zip", "images_evaluation.zip", "omniglot_28.pt"]


@pytest.mark.parametrize(
    ("download", "reason"), [(True, "the download failed .*no network"), (False, "downloading is off")]
)
def test_without_data_one_message_says_where_to_get_them(tmp_path: Path, download: bool, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        Omniglot(root=str(tmp_path), download=download).prepare_data()
    for fact in (
        str(tmp_path / "omniglot"),
        str(tmp_path / "omniglot-py"),
        "images_background.zip and images_evaluation.zip",
        "python/ of https://github.com/brendenlake/omniglot",
        "--data lightning_meta.datamodules.Glyphs",
    ):
        assert fact in str(caught.value)
    assert not list(tmp_path.glob("omniglot/*"))


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("drawings", [0, 19])
def test_missing_drawings_are_reported(root: Path, archived: bool, drawings: int) -> None:
    for path in sorted((root / "omniglot" / FEW["val"][0]).iterdir())[drawings:]:
        path.unlink()
    if archived:
        zip_folders(root / "omniglot")
    place = root / "omniglot" / ("images_background.zip" if archived else "images_background")
    with pytest.raises(DataError) as caught:
        load(root)
    assert str(caught.value) == (
        f"images_background/Hebrew/character01 has {drawings} drawings in {place} instead of 20. "
        f"Replace {place} by an intact copy, or delete it to have it downloaded again."
    )


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize(("kept", "reason"), [(0, "not an image"), (60, ".+")], ids=["empty", "truncated"])
def test_a_damaged_drawing_is_named(root: Path, archived: bool, kept: int, reason: str) -> None:
    drawing = root / "omniglot" / FEW["test"][1] / "0004_05.png"
    drawing.write_bytes(drawing.read_bytes()[:kept])
    if archived:
        zip_folders(root / "omniglot")
    with pytest.raises(
        DataError, match=rf"Keble/character02/0004_05.png cannot be read \({reason}\). Replace .*intact"
    ):
        load(root)
    assert not list(root.glob("omniglot/*.pt"))


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped"])
def test_a_damaged_archive_is_named(root: Path, damage: str) -> None:
    zip_folders(root / "omniglot")
    archive = root / "omniglot" / "images_evaluation.zip"
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        inside = next(item for item in file.infolist() if item.filename.endswith(".png")).header_offset + 120
    archive.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "emptied": b"",
            "flipped": content[:inside] + bytes([content[inside] ^ 0xFF]) + content[inside + 1 :],
        }[damage]
    )
    with pytest.raises(DataError, match=r"images_evaluation\.zip.* cannot be read .* delete it to have it downloaded"):
        load(root)


def test_the_cache_is_used_again_and_its_checksum_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(root).inputs
    for part in PARTS:
        shutil.rmtree(root / "omniglot" / part)
    with caplog.at_level(logging.INFO):
        assert_close(load(root).inputs, expected)
    cache = root / "omniglot" / "omniglot_28.pt"
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert torch.load(cache, weights_only=True)["sha256"] in caplog.text


def test_the_cache_of_version_0_1_is_read(root: Path) -> None:
    expected = load(root, "test").inputs
    cache = root / "omniglot" / "omniglot_28.pt"
    content = torch.load(cache, weights_only=True)
    images = torch.stack(content["images"])
    sha256 = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    torch.save({"images": images, "characters": content["classes"], "sha256": sha256}, cache)
    assert_close(load(root, "test").inputs, expected)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "changed image", "other content"])
def test_a_damaged_cache_is_reported_with_its_remedy(root: Path, damage: str) -> None:
    load(root)
    cache = root / "omniglot" / "omniglot_28.pt"
    content = torch.load(cache, weights_only=True)
    if damage == "changed image":
        content["images"][0][0, 0, 0, 0] = 1
        torch.save(content, cache)
    elif damage == "other content":
        torch.save([1, 2], cache)
    else:
        cache.write_bytes(cache.read_bytes()[: 1000 if damage == "truncated" else 0])
    with pytest.raises(DataError, match=r"omniglot_28\.pt is damaged .* Delete it"):
        load(root)


def test_a_missing_cache_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; call prepare_data"):
        Omniglot(root=str(tmp_path)).load_source("test")


def test_a_cache_that_cannot_be_written_is_reported(root: Path) -> None:
    (root / "omniglot").rename(root / "omniglot-py")
    (root / "omniglot").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .* --data.root"):
        load(root)
