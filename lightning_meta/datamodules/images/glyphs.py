"""Glyphs: letters of many scripts in many fonts, rendered on the spot. The default data set; nothing is downloaded."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
import torch
from PIL import features
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.files import whole_or_not_at_all
from lightning_meta.datamodules.images import glyph_renderer
from lightning_meta.datamodules.images.glyph_renderer import SCRIPTS, SIZE, GlyphSet, render_glyphs
from lightning_meta.datamodules.images.image_folder import read_image
from lightning_meta.errors import DataError

log = logging.getLogger(__name__)


class Glyphs(ClassificationDataModule):
    """About 1,000 classes of 20 images (1 x 28 x 28), a class being a letter; see `glyph_renderer`.

    Training draws on Latin, Greek, Cyrillic, Coptic and Canadian syllabics; validation and test on scripts of their
    own. The images are rendered once, in about 15 s, and kept under `<root>/glyphs/`.

    Args:
        root: folder for data.
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(self, root: str = "data", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Whoever edits the renderer gets a new file: images are never read that the code at hand would not make.
        recipe = hashlib.sha256(Path(glyph_renderer.__file__).read_bytes()).hexdigest()[:12]
        self.cache = Path(root) / "glyphs" / f"glyphs-{recipe}.npz"

    def prepare_data(self) -> None:
        if not self.cache.exists():
            log.info("Rendering the Glyphs data set (once, about 15 s) ...")
            write_cache(self.cache, render_glyphs())

    def load_source(self, split: Split) -> ClassBank:
        glyphs = read_cache(self.cache)
        images = glyphs.images[np.isin(glyphs.scripts, SCRIPTS[split])]
        return ClassBank.from_classes(torch.from_numpy(images).unsqueeze(2))

    def prepare_image(self, path: Path) -> Tensor:
        """The image is taken for dark ink on light paper."""
        return read_image(path, SIZE, channels=1, invert=True)


def write_cache(path: Path, glyphs: GlyphSet) -> None:
    """Write a rendered data set with its checksum and the versions of the libraries that drew it.

    The file appears whole or not at all, also when several runs write it at once. Raises `DataError` where it cannot
    be written.
    """
    sha256 = hashlib.sha256(glyphs.images.tobytes()).hexdigest()
    versions = {
        "matplotlib": matplotlib.__version__,
        "Pillow": PIL.__version__,
        "FreeType": features.version("freetype2"),
        "numpy": np.__version__,
    }
    try:
        with whole_or_not_at_all(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(
                file,
                images=glyphs.images,
                characters=np.array(glyphs.characters),
                scripts=np.array(glyphs.scripts),
                sha256=np.array(sha256),
                versions=np.array(json.dumps(versions)),
            )
    except OSError as error:
        raise DataError(f"cannot write {path} ({error}); choose another folder for data with --data.root.") from error


def read_cache(path: Path) -> GlyphSet:
    """Read what `write_cache` wrote. Raises `DataError` if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            glyphs = GlyphSet(file["images"], file["characters"].tolist(), file["scripts"].tolist())
            sha256, versions = str(file["sha256"]), json.loads(str(file["versions"]))
        # A checksum that differs from another machine's is no error: another FreeType may round a pixel differently.
        if hashlib.sha256(glyphs.images.tobytes()).hexdigest() != sha256:
            raise ValueError("the images do not match their checksum")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; call prepare_data() first, which renders it in about 15 s.") from None
    except Exception as error:  # damage shows as whatever zipfile, zlib, json or numpy's header parser stumbles over
        raise DataError(
            f"{path} cannot be read ({error}). Delete it; the next run renders it again in about 15 s."
        ) from error
    log.info("Glyphs: %d classes, sha256 %s, drawn by %s.", len(glyphs.images), sha256, versions)
    return glyphs
