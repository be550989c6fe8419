"""CIFAR-FS and FC100: few-shot learning on the 100 classes of CIFAR-100, which they split in different ways.

Krizhevsky: "Learning Multiple Layers of Features from Tiny Images" (2009), University of Toronto: the images.
Bertinetto, Henriques, Torr, Vedaldi: "Meta-learning with differentiable closed-form solvers" (2019), arXiv:1805.08136:
CIFAR-FS.
Oreshkin, Rodriguez, Lacoste: "TADAM: Task dependent adaptive metric for improved few-shot learning" (2018),
arXiv:1805.10123: FC100.
"""

import logging
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.files import whole_or_not_at_all
from lightning_meta.datamodules.images.cifar_split import CLASSES, cifar_fs_split, fc100_split
from lightning_meta.datamodules.images.image_cache import read_cache, write_cache
from lightning_meta.datamodules.images.image_folder import read_image
from lightning_meta.errors import DataError

log = logging.getLogger(__name__)

EXAMPLES = 600  # of each class: CIFAR-100's 500 for training and 100 for test
SIZE = 32  # pixels
FOLDER = "cifar100"
Pixels = npt.NDArray[np.uint8]


class CIFAR(ClassificationDataModule):
    """The images of CIFAR-100; a subclass says which classes each split has.

    They are taken from class folders `<root>/cifar100/<class>/*.png`, else from torchvision's
    `<root>/cifar-100-python/`, else they are downloaded there. They are read once and kept in `<root>/cifar100/` as one
    file, which CIFAR-FS and FC100 share.

    Args:
        splits: the classes of each split.
        root: folder for data.
        download: fetch what is missing (169 MB).
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(
        self, splits: dict[Split, list[str]], root: str = "data", download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.splits, self.root, self.download = splits, Path(root), download
        self.cache = self.root / FOLDER / "cifar100.pt"

    def prepare_data(self) -> None:
        """Read the images, unless that has been done. Raises `DataError` if some are missing or unreadable."""
        if self.cache.exists():
            return
        folder, pickles = self.root / FOLDER, self.root / datasets.CIFAR100.base_folder
        has_folders = any((folder / name).is_dir() for name in CLASSES)
        if not has_folders and not pickles.exists():
            self._download(pickles)
        log.info("Reading the images of %s (once) ...", folder if has_folders else pickles)
        write_cache(self.cache, read_folders(folder) if has_folders else read_pickles(self.root))

    def load_source(self, split: Split) -> ClassBank:
        return ClassBank.from_classes(torch.stack(read_cache(self.cache, self.splits[split])))

    def prepare_image(self, path: Path) -> Tensor:
        return read_image(path, SIZE, channels=3)

    def _download(self, pickles: Path) -> None:
        reason = "downloading is off (--data.download false)"
        if self.download:
            log.info("Downloading %s ...", datasets.CIFAR100.url)
            try:
                with whole_or_not_at_all(pickles) as unfinished:
                    download_and_extract_archive(
                        datasets.CIFAR100.url, str(unfinished.parent), md5=datasets.CIFAR100.tgz_md5
                    )
                return
            except (OSError, RuntimeError, HTTPException) as error:
                reason = f"the download failed ({error})"
        raise DataError(
            f"CIFAR-100 is missing: neither {self.root / FOLDER} has class folders nor is there {pickles}, and "
            f"{reason}. Unpack {datasets.CIFAR100.url} in {self.root}, or put {EXAMPLES} images of each class into "
            f"{self.root / FOLDER} as <class>/<name>.png. "
            "Or take data that need no download: --data lightning_meta.datamodules.Glyphs"
        )


class CIFARFS(CIFAR):
    """CIFAR-FS: 64 training, 16 validation and 20 test classes of 600 images (3 x 32 x 32); see `cifar_split`.

    Args:
        root: folder for data.
        download: fetch CIFAR-100 (169 MB) if it is missing.
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(self, root: str = "data", download: bool = True, **kwargs: Any) -> None:
        super().__init__(cifar_fs_split(), root, download, **kwargs)


class FC100(CIFAR):
    """FC100: 60 training, 20 validation and 20 test classes of 600 images (3 x 32 x 32), split by superclass.

    A superclass, such as insects, is in one split only; see `cifar_split`.

    Args:
        root: folder for data.
        download: fetch CIFAR-100 (169 MB) if it is missing.
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(self, root: str = "data", download: bool = True, **kwargs: Any) -> None:
        super().__init__(fc100_split(), root, download, **kwargs)


def read_folders(folder: Path) -> dict[str, Tensor]:
    """The images `(600, 3, 32, 32)` of each class, from one folder of PNG files per class.

    Raises `DataError` if a class has not 600 images, or one is unreadable or of another size.
    """
    remedy = f"Replace {folder} by an intact copy, or delete it to have CIFAR-100 downloaded."
    # No hidden files: macOS puts a file ._X.png beside X.png when it copies or archives.
    files = {name: sorted((folder / name).glob("[!.]*.png")) for name in CLASSES}
    for name, found in files.items():
        if len(found) != EXAMPLES:
            raise DataError(f"{folder / name} has {len(found)} images instead of {EXAMPLES}. {remedy}")

    def read(path: Path) -> Pixels:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # damage shows as whatever Pillow's decoder stumbles over
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(f"{path} cannot be read ({reason}). {remedy}") from error
        height, width, _ = pixels.shape
        if (width, height) != (SIZE, SIZE):
            raise DataError(f"{path} has {width} x {height} pixels instead of {SIZE} x {SIZE}. {remedy}")
        return pixels

    return {name: ordered_by_pixels([read(path) for path in found]) for name, found in files.items()}


def read_pickles(root: Path) -> dict[str, Tensor]:
    """The same images from the files that torchvision's data set has in `<root>/cifar-100-python/`.

    Raises `DataError` if one of them is missing or damaged.
    """
    folder, meta = root / datasets.CIFAR100.base_folder, datasets.CIFAR100.meta
    checksums = [*datasets.CIFAR100.train_list, *datasets.CIFAR100.test_list, [meta["filename"], meta["md5"]]]
    for name, md5 in checksums:
        if not check_integrity(folder / name, md5):
            raise DataError(
                f"{folder / name} is missing or damaged (its MD5 is not {md5}). "
                f"Replace {folder} by an intact copy, or delete it to have it downloaded again."
            )
    images: dict[str, list[Pixels]] = {name: [] for name in CLASSES}
    for train in (True, False):
        part = datasets.CIFAR100(str(root), train=train)
        for pixels, label in zip(part.data, part.targets, strict=True):
            images[part.classes[label]].append(pixels)
    return {name: ordered_by_pixels(found) for name, found in images.items()}


def ordered_by_pixels(images: list[Pixels]) -> Tensor:
    """Stack images `(H, W, 3)` to `(images, 3, H, W)`, in an order that is the same whatever source they come from."""
    ordered = sorted(images, key=lambda image: image.tobytes())
    return torch.from_numpy(np.stack(ordered)).permute(0, 3, 1, 2).contiguous()
