"""The image data sets of learn2learn as sources of episodes: mini-ImageNet, tiered-ImageNet, CUB, Aircraft and others.

Arnold, Mahajan, Datta, Bunner, Zarkias: "learn2learn: A Library for Meta-Learning Research" (2020), arXiv:2008.12284.
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.images.image_cache import read_cache, write_cache
from lightning_meta.datamodules.images.image_folder import read_image
from lightning_meta.errors import DataError
from lightning_meta.interop.learn2learn import import_learn2learn

log = logging.getLogger(__name__)

MODES: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}  # what learn2learn calls the splits
DataSet = Literal[
    "MiniImagenet",
    "TieredImagenet",
    "CUBirds200",
    "FGVCAircraft",
    "FGVCFungi",
    "DescribableTextures",
    "VGGFlower102",
    "CIFARFS",
    "FC100",
]


class Learn2LearnImages(ClassificationDataModule):
    """The classes of a data set of `learn2learn.vision.datasets`, in the splits that learn2learn gives it.

    learn2learn downloads and reads the data set. An image that is not square is cut to its centre, and each is resized
    to `image_size` once; the small images are kept in `<root>/<dataset>_<image_size>_<split>.pt`. All images of a split
    are held in memory: the 38,400 training images of mini-ImageNet take 813 MB.

    Args:
        dataset: name of the class.
        root: folder for data. learn2learn makes folders or files of its own in it.
        image_size: height and width in pixels.
        download: let learn2learn fetch what is missing.
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(
        self, dataset: DataSet, root: str = "data", image_size: int = 84, download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.dataset_class, self.root, self.image_size, self.download = dataset, Path(root), image_size, download

    def prepare_data(self) -> None:
        """Make the small images, unless they exist. Raises `DataError` if learn2learn cannot read the data set."""
        for split in MODES:
            if not self.cache(split).exists():
                self.root.mkdir(parents=True, exist_ok=True)
                write_cache(self.cache(split), self._read(split))

    def cache(self, split: Split) -> Path:
        """The file of a split's small images."""
        return self.root / f"{self.dataset_class}_{self.image_size}_{split}.pt"

    def load_source(self, split: Split) -> ClassBank:
        return ClassBank.from_ragged(read_cache(self.cache(split)))

    def prepare_image(self, path: Path) -> Tensor:
        return read_image(path, self.image_size, channels=3)

    def _read(self, split: Split) -> dict[str, Tensor]:
        make = getattr(import_learn2learn().vision.datasets, self.dataset_class)
        log.info("Reading the %s images of %s by learn2learn (once) ...", split, self.dataset_class)
        try:
            dataset = make(root=str(self.root), mode=MODES[split], download=self.download)
            images: defaultdict[str, list[Tensor]] = defaultdict(list)
            for index in range(len(dataset)):
                image, label = dataset[index]
                images[str(int(label))].append(small_image(image, self.image_size))
        except Exception as error:  # each data set has its own downloads and formats, and fails in its own ways
            raise DataError(
                f"learn2learn cannot read the {split} split of {self.dataset_class} in {self.root} "
                f"({type(error).__name__}: {error}). Put its files there, as learn2learn's documentation says, or sort "
                "the images into class folders for --data ImageFolder."
            ) from error
        return {name: torch.stack(images[name]) for name in sorted(images, key=int)}


def small_image(image: Image.Image | Tensor, size: int) -> Tensor:
    """`(3, size, size)` uint8 of a Pillow image, or of a tensor `(3, H, W)` of values 0 to 255."""
    if isinstance(image, Tensor):
        image = Image.fromarray(image.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()
