"""A few-shot data set from your own images: any folder that has a folder of images for each class."""

import hashlib
import logging
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.class_split import ClassSplit, check_any, check_split, find_classes
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.files import IMAGES, example_files, visible_files
from lightning_meta.datamodules.images.image_cache import read_cache, write_cache
from lightning_meta.errors import ConfigError, DataError

log = logging.getLogger(__name__)

SUFFIXES = IMAGES.suffixes
SMALL_IMAGES = Path("data/small_images")  # in the folder that training is started in, as runs/ is
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name for them
RECIPE = 1  # to be raised whenever `read_image` makes other pixels of the same file


class ImageFolder(ClassificationDataModule):
    """Images of your own, in a folder for each class. Classes may have different numbers of images.

    There are three ways to split the classes:

    - by folder: the classes are `<root>/train/<class>/`, `<root>/val/<class>/` and `<root>/test/<class>/`;
    - by list: the classes are `<root>/<class>/`, and three text files name those of each split,
      `--data.split.train train.txt --data.split.val val.txt --data.split.test test.txt`;
    - by fraction: the classes are `<root>/<class>/`, shuffled by a seed and shared out,
      `--data.split.fractions [0.64,0.16,0.2] --data.split.seed 1`. The log names the classes of each split. To test on
      all of them what was trained on other data: `--data.split.fractions [0,0,1]`. For optimizees, which learn the
      classes of training and have no others: `--data.images.split.fractions [1,0,0]`.

    An image is any PNG, JPEG, WebP, BMP, GIF or TIFF file that is directly in the folder of its class. It is turned
    upright as its EXIF data say, laid on white if it is transparent, resized until its shorter side is `image_size`,
    and its centre is cut out; of an animation this is the first frame. That is done once. The small images are kept in
    one file, `data/small_images/few_shot_<settings>.pt`, and a new one is made when an image is added, removed or
    changed, or a setting is. Files of former settings may be deleted. Nothing is written to `root`.

    All images of a split are held in memory: 10,000 of 3 x 84 x 84 take 212 MB.

    Args:
        root: the folder.
        image_size: height and width in pixels.
        channels: 3 for colour or 1 for grey.
        invert: exchange dark and light. Dark drawings on light paper become what Omniglot and Glyphs have, ink 1 on 0.
        split: which classes are for training, validation and test.
        cache: folder for the small images. None: `data/small_images`.
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 84,
        channels: int = 3,
        invert: bool = False,
        split: ClassSplit = ClassSplit(),  # noqa: B008 - never mutated
        cache: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.image_size, self.channels, self.class_split = Path(root), image_size, channels, split
        self.invert = invert
        self.cache_folder = Path(cache or SMALL_IMAGES)
        if image_size < 1:
            raise ConfigError(f"image_size={image_size} must be at least 1 pixel.")
        if channels not in MODES:
            raise ConfigError(f"channels={channels} must be 3 (colour) or 1 (grey).")
        check_split(split)

    def prepare_data(self) -> None:
        """Make the small images, unless they exist. Raises `DataError` if images are missing or unreadable."""
        for split, of_split in self.files.items():
            if of_split:
                log.info("%s: %d classes for %s: %s.", self.root, len(of_split), split, ", ".join(of_split))
        if self.cache.exists():
            return
        files = {name: paths for of_split in self.files.values() for name, paths in of_split.items()}
        log.info("Reading %d images of %s (once) ...", sum(map(len, files.values())), self.root)
        others = Counter(path.suffix for name in files for path in visible_files(self.root / name, of_kind=False))
        if others:
            counts = ", ".join(f"{count} with the suffix '{suffix}'" for suffix, count in others.most_common())
            log.warning("%s: passing over files that are no images: %s.", self.root, counts)
        images = {name: torch.stack([self.prepare_image(path) for path in paths]) for name, paths in files.items()}
        write_cache(self.cache, images, option="--data.cache")

    def prepare_image(self, path: Path) -> Tensor:
        return read_image(path, self.image_size, self.channels, self.invert)

    def load_source(self, split: Split) -> ClassBank:
        files, shape = self.files[split], self.shapes[split]
        check_any(files, split, self.class_split, self.root)
        smallest = min(files, key=lambda name: len(files[name]))
        if len(files[smallest]) < shape.k_shot + shape.n_query:
            raise ConfigError(
                f"{split} episodes need {shape.k_shot + shape.n_query} images of every class (k_shot={shape.k_shot} + "
                f"n_query={shape.n_query}), but {self.root / smallest} has {len(files[smallest])}; lower k_shot or "
                "n_query, add images, or leave the class out."
            )
        return ClassBank.from_ragged(read_cache(self.cache, list(files)))

    def class_names(self, split: Split) -> list[str]:
        return [Path(name).name for name in self.files[split]]

    @cached_property
    def files(self) -> dict[Split, dict[str, list[Path]]]:
        """The images of each class of each split, looked up once so that the whole run has the same."""
        return {
            split: {name: example_files(self.root / name) for name in names}
            for split, names in find_classes(self.root, self.class_split).items()
        }

    @cached_property
    def cache(self) -> Path:
        """The file of small images. Its name depends on all that decides about them."""
        facts = [f"{RECIPE} {self.image_size} {self.channels}{' inverted' if self.invert else ''}"]
        for of_split in self.files.values():
            for name, paths in of_split.items():
                for path in paths:
                    status = path.stat()
                    facts.append(f"{name}/{path.name} {status.st_size} {status.st_mtime_ns}")
        key = hashlib.sha256("\n".join(sorted(facts)).encode(errors="surrogateescape")).hexdigest()[:12]
        return self.cache_folder / f"few_shot_{self.channels}x{self.image_size}x{self.image_size}_{key}.pt"


def read_image(path: Path, size: int, channels: int, invert: bool = False) -> Tensor:
    """Decode an image into `(channels, size, size)` uint8, as `ImageFolder` says. Raises `DataError` if it cannot."""
    try:
        with Image.open(path) as image:
            # JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves twice the size needed. Making 84 x 84
            # pixels of 4032 x 3024 took 0.05 s with this and 0.6 s without.
            image.draft(None, (2 * size, 2 * size))
            upright = eight_bits(ImageOps.exif_transpose(image))
        if upright.has_transparency_data:
            paper = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(paper, upright.convert("RGBA"))
        small = ImageOps.fit(upright.convert(MODES[channels]), (size, size), Image.Resampling.LANCZOS)
        small = ImageOps.invert(small) if invert else small
    except Exception as error:  # damage shows as whatever Pillow's many decoders stumble over
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path} cannot be read ({reason}). Replace or remove it.") from error
    return torch.from_numpy(np.array(small).reshape(size, size, channels)).permute(2, 0, 1).contiguous()


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits of grey to 8. (Pillow's `convert` would cut them off at 255: all white.)"""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: 32 bits a pixel, whose range is not known; save it with 8 or 16 bits")
    return image
