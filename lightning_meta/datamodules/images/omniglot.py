"""Omniglot: handwritten characters of 50 alphabets, each drawn once by 20 people.

Lake, Salakhutdinov, Tenenbaum: "Human-level concept learning through probabilistic program induction" (2015), Science
350(6266); github.com/brendenlake/omniglot.
"""

import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.files import whole_or_not_at_all
from lightning_meta.datamodules.images.image_cache import read_cache, write_cache
from lightning_meta.datamodules.images.image_folder import read_image
from lightning_meta.datamodules.images.omniglot_split import vinyals_split
from lightning_meta.errors import DataError

log = logging.getLogger(__name__)

DRAWINGS = 20  # of each character
SIZE = 28  # pixels
PARTS = ("images_background", "images_evaluation")
FOLDERS = ("omniglot", datasets.Omniglot.folder)  # ours, and the one that torchvision's data set uses
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Omniglot(ClassificationDataModule):
    """Classes of 20 drawings (1 x 28 x 28, ink 1 on 0) in the split of Vinyals et al.; see `omniglot_split`.

    With rotations there are 4,112 training, 688 validation and 1,692 test classes, without them 1,028, 172 and 423. A
    character and its rotations are always in the same split.

    The 1-bit drawings of 105 x 105 pixels are turned into grey levels and reduced with Pillow's antialiased LANCZOS
    filter, as learn2learn does. (The code of MAML and of Prototypical Networks resizes the 1-bit images themselves;
    Pillow then takes the nearest pixel, whichever filter is asked for, and strokes come out jagged.)

    `<root>/omniglot/` or torchvision's `<root>/omniglot-py/` may hold the two parts of the data set,
    `images_background` and `images_evaluation`, as folders or as zip archives; archives are read as they are, without
    being unpacked. What is missing is downloaded to `<root>/omniglot/`. The small images are made once and kept there.

    Args:
        root: folder for data.
        rotations: make the rotations of a character by 90, 180 and 270 degrees classes of their own.
        download: fetch what is missing (15 MB).
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(self, root: str = "data", rotations: bool = True, download: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.rotations, self.download = Path(root), rotations, download
        self.splits = vinyals_split()
        self.cache = self.root / FOLDERS[0] / f"omniglot_{SIZE}.pt"

    def prepare_data(self) -> None:
        """Make the small images, unless they exist. Raises `DataError` if drawings are missing or unreadable."""
        if self.cache.exists():
            return
        images: dict[str, Tensor] = {}
        for part in PARTS:
            location = find_part(self.root, part) or self._download(part)
            log.info("Reading the drawings of %s (once) ...", location)
            characters = [name for names in self.splits.values() for name in names if name.startswith(f"{part}/")]
            images |= read_part(location, characters)
        write_cache(self.cache, images)

    def load_source(self, split: Split) -> ClassBank:
        images = torch.stack(read_cache(self.cache, self.splits[split]))
        return ClassBank.from_classes(with_rotations(images) if self.rotations else images)

    def prepare_image(self, path: Path) -> Tensor:
        """The image is taken for dark ink on light paper."""
        return read_image(path, SIZE, channels=1, invert=True)

    def _download(self, part: str) -> Path:
        folder = self.root / FOLDERS[0]
        reason = "downloading is off (--data.download false)"
        if self.download:
            try:
                return download_part(part, folder)
            except (OSError, RuntimeError, HTTPException) as error:
                reason = f"the download failed ({error})"
        places = " nor ".join(str(self.root / name) for name in FOLDERS)
        archives = " and ".join(f"{name}.zip" for name in PARTS)
        raise DataError(
            f"{part} of Omniglot is missing: neither {places} has it as a folder or a zip archive, and {reason}. "
            f"Put {archives} into {folder}; they are in the folder python/ of https://github.com/brendenlake/omniglot. "
            "Or take data that need no download: --data lightning_meta.datamodules.Glyphs"
        )


def with_rotations(images: Tensor) -> Tensor:
    """Add the classes turned by 90, 180 and 270 degrees: `(classes, ...)` becomes `(4 * classes, ...)`.

    The last two axes are those of the image. Class c turned k times is class `k * classes + c`.
    """
    return torch.cat([torch.rot90(images, quarter_turns, dims=(-2, -1)) for quarter_turns in range(4)])


def find_part(root: Path, part: str) -> Path | None:
    """The folder or else the zip archive of a part of the data set below `root`, or None."""
    places = [root / folder / name for name in (part, f"{part}.zip") for folder in FOLDERS]
    return next((place for place in places if place.exists()), None)


def download_part(part: str, folder: Path) -> Path:
    """Download the zip archive of a part from its authors into `folder`, with torchvision's address and checksum."""
    archive = folder / f"{part}.zip"
    log.info("Downloading %s ...", archive)
    with whole_or_not_at_all(archive) as unfinished:
        url = f"{datasets.Omniglot.download_url_prefix}/{archive.name}"
        download_url(url, unfinished.parent, unfinished.name, md5=datasets.Omniglot.zips_md5[part])
    return archive


def read_part(location: Path, characters: list[str]) -> dict[str, Tensor]:
    """The drawings of `characters`, which are in the folder or zip archive `location`, reduced by `shrink`.

    Returns:
        For each character `(20, 1, 28, 28)` uint8, ordered by file name and thereby by the person who drew.

    Raises:
        DataError: the archive or a drawing cannot be read, or a character has not 20 drawings.
    """
    drawings: dict[str, list[Tensor]] = {character: [] for character in characters}
    remedy = f"Replace {location} by an intact copy, or delete it to have it downloaded again."
    file = location
    try:
        for name, read in stored_files(location):
            file = location / name
            character = PurePosixPath(name).parent
            of_character = drawings.get(f"{location.stem}/{character.parent.name}/{character.name}")
            # The second test is for macOS, which puts a file ._X.png beside X.png when it copies or archives.
            if of_character is not None and file.match("[!.]*.png"):
                of_character.append(shrink(read()))
    except UNREADABLE as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{file} cannot be read ({reason}). {remedy}") from error
    for name, found in drawings.items():
        if len(found) != DRAWINGS:
            raise DataError(f"{name} has {len(found)} drawings in {location} instead of {DRAWINGS}. {remedy}")
    return {name: torch.stack(found) for name, found in drawings.items()}


def stored_files(location: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name and reader of each file in a folder or a zip archive, ordered by name."""
    if location.is_dir():
        for path in sorted(location.rglob("*")):
            yield path.relative_to(location).as_posix(), path.read_bytes
    else:
        with zipfile.ZipFile(location) as archive:
            for name in sorted(archive.namelist()):
                yield name, partial(archive.read, name)


def shrink(png: bytes) -> Tensor:
    """Decode a drawing with black ink (0) on white paper into `(1, 28, 28)` uint8 with ink 255 on background 0."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(255 - np.asarray(small)).unsqueeze(0)
