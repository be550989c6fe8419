import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.images import glyph_renderer
from lightning_meta.datamodules.images import glyphs as glyphs_module
from lightning_meta.datamodules.images.glyph_renderer import (
    EXAMPLES,
    SCRIPTS,
    SIZE,
    Font,
    GlyphSet,
    drop_other_forms,
    drop_twins,
    load_fonts,
    render_examples,
    render_glyphs,
    render_plain,
)
from lightning_meta.datamodules.images.glyphs import Glyphs
from lightning_meta.errors import DataError

SAMPLE = "AgЖᐁشⵣლאԱ"


@pytest.fixture(scope="session")
def glyphs() -> GlyphSet:
    return render_glyphs()


@pytest.fixture(scope="session")
def fonts() -> list[Font]:
    return load_fonts()


def test_there_are_a_thousand_classes_of_twenty_images(glyphs: GlyphSet) -> None:
    classes = len(glyphs.images)
    assert classes >= 1000
    assert len(set(glyphs.characters)) == len(glyphs.characters) == len(glyphs.scripts) == classes
    assert glyphs.images.shape == (classes, EXAMPLES, SIZE, SIZE) == (classes, 20, 28, 28)
    assert glyphs.images.dtype == np.uint8


def test_splits_have_scripts_of_their_own_and_enough_classes(glyphs: GlyphSet) -> None:
    all_scripts = [script for scripts in SCRIPTS.values() for script in scripts]
    assert len(set(all_scripts)) == len(all_scripts)
    assert set(glyphs.scripts) == set(all_scripts)
    sizes = {split: int(np.isin(glyphs.scripts, scripts).sum()) for split, scripts in SCRIPTS.items()}
    assert sizes["train"] >= 650 and sizes["val"] >= 100 and sizes["test"] >= 200


def test_no_two_classes_look_the_same(glyphs: GlyphSet, fonts: list[Font]) -> None:
    plain = {render_plain(char, fonts[0]).tobytes() for char in glyphs.characters}
    assert len(plain) == len(glyphs.characters)


@pytest.mark.parametrize("twins", ["AΑА", "cCсϹ", "oOоО", "sSѕ", "xXхХ", "SՏ"])
def test_of_twins_only_the_first_is_a_class(twins: str, glyphs: GlyphSet, fonts: list[Font]) -> None:
    assert drop_twins(twins, fonts[0]) == [twins[0]]
    assert sum(char in glyphs.characters for char in twins) == 1


def test_letters_that_differ_stay(fonts: list[Font]) -> None:
    assert drop_twins("ABΩЖᐁᐃᐅᐊ", fonts[0]) == list("ABΩЖᐁᐃᐅᐊ")


@pytest.mark.parametrize(
    ("char", "family"),
    [
        ("Ⴀ", "DejaVu Serif"),  # another design of Georgian
        ("Ⴟ", "DejaVu Serif"),
        ("ჯ", "DejaVu Serif"),
        ("ჯ", "DejaVu Sans Mono"),
        ("ѣ", "DejaVu Serif"),  # its italics have another form
        ("Ӌ", "DejaVu Sans Mono"),  # its oblique font has Ӌ and Ӷ swapped
        ("Ӷ", "DejaVu Sans Mono"),
        ("Ŋ", "STIX General"),  # a capital N with a hook instead of a large ŋ
    ],
)
def test_a_family_that_draws_another_form_is_left_out(char: str, family: str, fonts: list[Font]) -> None:
    assert family in {font.family for font in fonts if ord(char) in font.coverage}
    kept = drop_other_forms(char, fonts)
    assert family not in {font.family for font in kept}
    assert kept[:4] == fonts[:4]


@pytest.mark.parametrize("char", "BENIlmΣΩЖЩЮխლ")
def test_bold_slanted_serif_and_fixed_width_letters_stay(char: str, fonts: list[Font]) -> None:
    assert drop_other_forms(char, fonts) == [font for font in fonts if ord(char) in font.coverage]


def test_every_image_has_ink_on_a_background_of_zero_with_a_free_border(glyphs: GlyphSet) -> None:
    images = glyphs.images
    assert images.max(axis=(2, 3)).min() > 100
    ink = (images > 127).mean(axis=(2, 3))
    assert ink.min() > 0.005 and np.median(ink) < 0.3
    border = np.concatenate([images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]], axis=-1)
    assert border.max() == 0


def test_examples_of_a_class_differ(glyphs: GlyphSet) -> None:
    assert all(len({image.tobytes() for image in images}) == EXAMPLES for images in glyphs.images)


def test_rendering_again_gives_the_same_images(glyphs: GlyphSet, fonts: list[Font]) -> None:
    for char in SAMPLE:
        assert_array_equal(render_examples(char, fonts), glyphs.images[glyphs.characters.index(char)])


def test_another_process_renders_the_same_images(glyphs: GlyphSet) -> None:
    program = """
import sys
from glyph_renderer import load_fonts, render_examples
fonts = load_fonts()
for char in sys.argv[1]:
    sys.stdout.buffer.write(render_examples(char, fonts).tobytes())
"""
    # The renderer stands alone. Importing it without its package spares the process the seconds that torch takes.
    folder = str(Path(glyph_renderer.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path]), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program, SAMPLE]
    result = subprocess.run(command, env=environment, capture_output=True, check=True)
    expected = b"".join(glyphs.images[glyphs.characters.index(char)].tobytes() for char in SAMPLE)
    assert result.stdout == expected


@pytest.fixture
def few(glyphs: GlyphSet) -> GlyphSet:
    """Every eighth class, to keep the tests of the cache fast."""
    return GlyphSet(glyphs.images[::8], glyphs.characters[::8], glyphs.scripts[::8])


@pytest.fixture
def datamodule(tmp_path: Path, few: GlyphSet, monkeypatch: pytest.MonkeyPatch) -> Glyphs:
    """A datamodule with a fresh cache of a few classes."""
    monkeypatch.setattr(glyphs_module, "render_glyphs", lambda: few)
    datamodule = Glyphs(root=str(tmp_path), n_way=20, n_query=5)
    datamodule.prepare_data()
    return datamodule


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_source_holds_the_images_of_its_split(split: Split, datamodule: Glyphs, few: GlyphSet) -> None:
    source = datamodule.load_source(split)
    assert isinstance(source, ClassBank)
    expected = few.images[np.isin(few.scripts, SCRIPTS[split])]
    assert_array_equal(source.inputs.numpy(), expected.reshape(-1, 1, SIZE, SIZE))
    assert len(source.size) == len(expected)


def test_episodes_are_drawn(datamodule: Glyphs) -> None:
    datamodule.sources["train"] = datamodule.load_source("train")
    episode = next(iter(datamodule.train_dataloader()))
    assert datamodule.shapes["train"] == EpisodeShape(n_way=20, k_shot=1, n_query=5)
    assert episode.support.x.shape == (4, 20, 1, SIZE, SIZE)
    assert episode.query.x.shape == (4, 100, 1, SIZE, SIZE)


def test_the_cache_is_used_again(datamodule: Glyphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> GlyphSet:
        raise AssertionError("rendered a second time")

    monkeypatch.setattr(glyphs_module, "render_glyphs", fail)
    datamodule.prepare_data()
    assert [path.name for path in datamodule.cache.parent.iterdir()] == [datamodule.cache.name]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten", "not an archive"])
def test_a_damaged_cache_is_reported_with_its_remedy(datamodule: Glyphs, damage: str) -> None:
    content = datamodule.cache.read_bytes()
    middle = len(content) // 2
    datamodule.cache.write_bytes(
        {
            "truncated": content[:middle],
            "emptied": b"",
            "overwritten": content[:middle] + b"\xff" * 50 + content[middle + 50 :],
            "not an archive": b"images",
        }[damage]
    )
    with pytest.raises(DataError, match=r"glyphs-\w+\.npz cannot be read .*Delete it"):
        datamodule.load_source("train")


def test_a_missing_cache_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; call prepare_data"):
        Glyphs(root=str(tmp_path)).load_source("test")


def test_a_root_that_cannot_be_written_is_reported(datamodule: Glyphs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .* --data.root"):
        Glyphs(root=str(tmp_path / "file")).prepare_data()
