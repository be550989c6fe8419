"""Images as functions from a pixel's place to its value: complete an image from some of its pixels.

As in Garnelo et al.: "Conditional Neural Processes" (2018), arXiv:1807.01613, section 4.2.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, subkeys
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError


@dataclass(frozen=True)
class PixelSource(TaskSource):
    """Draws images of a bank, each as likely as any other, and pixels of them in random order, without repetition."""

    bank: ClassBank

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"an image is a regression task: n_way must be 1, not {shape.n_way}.")
        height, width = self.size
        if shape.k_shot + shape.n_query > height * width:
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} pixels are needed, but an image has {height} x "
                f"{width} = {height * width}; lower k_shot or n_query."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.bank.inputs.shape[-2:]
        return height, width

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Places `(T, K, 2)` and values `(T, K, C)` of pixels, and `(T, Q, 2)` and `(T, Q, C)` of others."""
        k, points = shape.k_shot, shape.k_shot + shape.n_query
        order_TM = self.order(keys)[:, :points, None]
        x, y = (leaf.gather(1, order_TM.expand(-1, -1, leaf.shape[-1])) for leaf in self.pixels(keys))
        return Episode(support=Batch(x[:, :k], y[:, :k]), query=Batch(x[:, k:], y[:, k:]))

    def pixels(self, keys: Keys) -> Batch:
        """All P pixels, row by row: places `(T, P, 2)`, down and right in [-1, 1], and values `(T, P, C)` in [0, 1]."""
        images = self.bank.inputs
        rows = torch.from_numpy(choose(subkeys(keys, [0])[:, 0], len(images), 1)[:, 0]).to(images.device)
        y_TPC = images.index_select(0, rows).float().div_(255).flatten(2).transpose(1, 2)
        down, right = (torch.linspace(-1, 1, length, device=images.device) for length in self.size)
        return Batch(torch.cartesian_prod(down, right).expand(len(keys), -1, -1), y_TPC)

    def order(self, keys: Keys) -> Tensor:
        """A random order of the P pixels, `(T, P)`: an episode with fewer support pixels has the first of them."""
        height, width = self.size
        words_TP = subkeys(subkeys(keys, [1])[:, 0], range(height * width))
        return torch.from_numpy(words_TP.argsort(-1, kind="stable")).to(self.bank.inputs.device)

    def to(self, device: torch.device) -> "PixelSource":
        return replace(self, bank=self.bank.to(device))


class ImageCompletion(EpisodicDataModule):
    """An episode is an image: `k_shot` support pixels, and `n_query` query pixels among the others.

    Args:
        images: where images come from, with its splits; only its data are used, not its episodes.
        n_way: must be 1.
        k_shot, n_query: pixels of an image.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self, images: ClassificationDataModule, n_way: int = 1, k_shot: int = 100, n_query: int = 200, **kwargs: Any
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        self.images = images

    def prepare_data(self) -> None:
        self.images.prepare_data()

    def load_source(self, split: Split) -> TaskSource:
        return PixelSource(self.images.load_source(split))
