"""Data sets of few classes, as torchvision has them."""

from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.images.image_folder import read_image
from lightning_meta.errors import DataError, reason


class TorchvisionImages(ClassificationDataModule):
    """The training images of a torchvision data set. All classes are in every split: episodes of them have new images
    only for what was trained on other data.

    Args:
        root: folder for data; torchvision's own sub-folder in it is read, or made by its download.
        download: fetch what is missing.
        **kwargs: of `ClassificationDataModule`.
    """

    loader: Any  # of torchvision
    size: int  # pixels of an image's side
    channels: int

    def __init__(self, root: str = "data", download: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.download = root, download

    def prepare_data(self) -> None:
        """Download what is missing. Raises `DataError` if that fails or the files are damaged."""
        name = self.loader.__name__
        try:
            self.loader(self.root, train=True, download=self.download)
        except (OSError, RuntimeError, HTTPException) as error:
            raise DataError(
                f"{name} is not in {self.root} and could not be had ({error}). Put torchvision's files there, or allow "
                "the download."
            ) from error

    def load_source(self, split: Split) -> ClassBank:
        found = self.loader(self.root, train=True)
        images, labels = torch.as_tensor(found.data), torch.as_tensor(found.targets)
        images = images[:, None] if self.channels == 1 else images.permute(0, 3, 1, 2)
        return ClassBank.from_ragged([images[labels == label] for label in labels.unique()])

    def prepare_image(self, path: Path) -> Tensor:
        """Images of one channel are taken for dark ink on light paper."""
        return read_image(path, self.size, self.channels, invert=self.channels == 1)


class MNIST(TorchvisionImages):
    """60,000 handwritten digits (1 x 28 x 28, ink 1 on 0), ten classes."""

    loader, size, channels = datasets.MNIST, 28, 1


class MNISTTest(MNIST):
    """The 10,000 digits of MNIST's test set as data of their own, which is enough for much.

    Only `MNIST/raw/t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte` are read.
    """

    def files(self) -> tuple[Path, Path]:
        raw = Path(self.root) / "MNIST" / "raw"
        return raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"

    def prepare_data(self) -> None:
        if not all(file.exists() for file in self.files()):
            super().prepare_data()

    def load_source(self, split: Split) -> ClassBank:
        images_file, labels_file = self.files()
        try:
            images, labels = read_image_file(str(images_file)), read_label_file(str(labels_file))
        except (OSError, ValueError, AssertionError) as error:
            raise DataError(
                f"{images_file} or {labels_file.name} cannot be read ({reason(error)}); delete both, they will be "
                "fetched again."
            ) from error
        return ClassBank.from_ragged([images[labels == label][:, None] for label in labels.unique()])


class CIFAR10(TorchvisionImages):
    """50,000 images of things (3 x 32 x 32), ten classes."""

    loader, size, channels = datasets.CIFAR10, 32, 3
