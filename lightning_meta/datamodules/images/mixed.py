"""Several data sets of images in one training, each episode from one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.episodes import EpisodeDataset, EpisodeLoader, TaskSource
from lightning_meta.datamodules.mixed_source import MixedSource
from lightning_meta.errors import ConfigError

AT_ONCE = 1000  # images that are resized together
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601-2, as Pillow has it
ORDINARY = EpisodeShape(5, 1, 15)  # of a data set that is not told otherwise


class Mixed(ClassificationDataModule):
    """Episodes from several data sets of images; the classes of an episode are all of one of them.

    In training the source of an episode is drawn by its key, with the weights. Validation and test take the sources in
    turn and play `val_episodes` and `test_episodes` of each: the frozen episodes that it has when it is alone, with the
    same seed. Besides the mean over all of them, each source has its own, `val/<name>/acc` and `test/<name>/acc`.

    All images are made into one shape: resized to a square (bilinear, with antialiasing), then colours to grey by the
    weights of ITU-R 601-2, or grey to three equal channels.

    Of a source it counts which images it has: its root, its split, `train_classes`, `train_split`. Its episodes are
    those of `Mixed`.

    Args:
        sources: the data sets by names of your choice.
        weights: how often each is trained on, relative to the others; with 0 a source is only tested. None: all alike.
        image_size: height and width in pixels. None: that of all sources.
        channels: 1 or 3. None: as many as all sources have.
        **kwargs: of `ClassificationDataModule`.
    """

    def __init__(
        self,
        sources: dict[str, ClassificationDataModule],
        weights: dict[str, float] | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        weights = dict.fromkeys(sources, 1.0) if weights is None else weights
        _check_names(sources, weights)
        if image_size is not None and image_size < 1:
            raise ConfigError(f"image_size={image_size} must be at least 1 pixel.")
        if channels not in (None, 1, 3):
            raise ConfigError(f"channels={channels} must be 3 (colour) or 1 (grey).")
        own = {"labels": "shuffled", "train_classes": None, "train_split": "train"}
        for setting, usual in own.items():
            if getattr(self, setting) != usual:
                remedy = "leave it out" if setting == "labels" else "say it of a source, data.sources"
                raise ConfigError(f"{setting}={getattr(self, setting)} is not for mixed data; {remedy}.")
        if self.unsupervised or any(source.unsupervised for source in sources.values()):
            raise ConfigError("unsupervised is for one data set; leave it out of mixed data and of their sources.")
        if any(source.arrivals for source in sources.values()):
            raise ConfigError("arrivals of a source would not be played; set data.arrivals of the mixed data alone.")
        for name, source in sources.items():
            told = {*source.shapes.values()}
            if told != {ORDINARY} and told != {*self.shapes.values()}:
                raise ConfigError(
                    f"sources.{name} has episodes of its own ({', '.join(map(str, told))}), which would not be played; "
                    "set n_way, k_shot, n_query and variable of the mixed data alone."
                )
            source.shapes = self.shapes
        self.mixed, self.weights, self.image_size, self.channels = sources, weights, image_size, channels
        self.name = " + ".join(source.name for source in sources.values())
        self._classes: dict[Split, list[int]] = {}  # of each source that is played

    def played(self, split: Split) -> list[str]:
        """The names of the sources of a split's episodes."""
        return [name for name in self.mixed if split != "train" or self.weights[name]]

    def trained_on(self) -> str:
        return " + ".join(self.mixed[name].trained_on() for name in self.played("train")) + self.in_turn

    def facts(self, split: Split) -> dict[str, Any]:
        return {**super().facts(split), "sources": self.played(split)}

    def parts(self, split: Split, ids: Sequence[int]) -> list[str]:
        names = self.played(split)
        return [names[i % len(names)] for i in ids]

    def prepare_data(self) -> None:
        for source in self.mixed.values():
            source.prepare_data()

    def prepare_image(self, path: Path) -> Tensor:
        """As the first source does."""
        image = next(iter(self.mixed.values())).prepare_image(path)[None]
        return in_shape(image, self.channels or image.shape[1], self.image_size or image.shape[2])[0]

    def load_source(self, split: Split) -> ClassBank:
        """The classes of one source after those of the other."""
        banks = {name: self._load(name, split) for name in self.played(split)}
        self._classes[split] = [len(bank.size) for bank in banks.values()]
        shapes = {name: tuple(bank.inputs.shape[1:]) for name, bank in banks.items()}
        (first, shape), *others = shapes.items()
        if unlike := next((name for name, other in others if other != shape), None):
            raise ConfigError(
                f"images of {first} are {_by(shape)}, but those of {unlike} {_by(shapes[unlike])}; set data.image_size "
                "and data.channels, to which all are made."
            )
        return reduce(ClassBank.joined, banks.values())

    def _load(self, name: str, split: Split) -> ClassBank:
        source = self.mixed[name]
        bank = source.load_split(split)
        if bank.inputs.dtype != torch.uint8 or bank.inputs.ndim != 4:
            raise ConfigError(f"sources.{name}: {source.name} has no images; only data sets of images can be mixed.")
        bank = source._thinned(bank) if split == "train" else bank
        channels, height, width = bank.inputs.shape[1:]
        if self.image_size is None and height != width and self.channels is not None:
            raise ConfigError(f"images of {name} are {_by((channels, height, width))}; set data.image_size.")
        if self.image_size is None and self.channels is None:
            return bank
        return replace(bank, inputs=in_shape(bank.inputs, self.channels or channels, self.image_size or height))

    def class_names(self, split: Split) -> list[str] | None:
        names = [self.mixed[name].class_names(split) for name in self.played(split)]
        return None if None in names else [name for of_source in names for name in of_source or ()]

    def views(self, split: Split) -> list[ClassBank]:
        """The classes of each source alone; images are those of all."""
        bank, ends = self.source(split), np.cumsum([0, *self._classes[split]])
        return [replace(bank, first=bank.first[start:end], size=bank.size[start:end]) for start, end in pairwise(ends)]

    def check_episodes(self, split: Split) -> None:
        self.dataset(split)  # which checks its source

    def extremes(self, split: Split) -> tuple[EpisodeShape, ...]:
        if self.variable is None or not self.varies(split):
            return super().extremes(split)
        smallest, largest = zip(*(self.variable.limits(view.size) for view in self.views(split)), strict=True)
        return EpisodeShape(*map(min, zip(*smallest, strict=True))), EpisodeShape(*map(max, zip(*largest, strict=True)))

    def dataset_of(self, kind: type[EpisodeDataset], source: TaskSource, split: Split) -> EpisodeDataset:
        views = {
            name: self.varied(view, split) for name, view in zip(self.played(split), self.views(split), strict=True)
        }
        named = "class_labels" in self.needs and split == "train"
        first_labels = np.cumsum([0, *self._classes[split][:-1]]).tolist() if named else [0] * len(views)
        mixed = MixedSource(source, views, [self.weights[name] for name in views], first_labels)
        return super().dataset_of(kind, mixed, split)

    def frozen_loader(self, split: Split, episodes: int) -> EpisodeLoader:
        return super().frozen_loader(split, episodes * len(self.played(split)))


def in_shape(images: Tensor, channels: int, size: int) -> Tensor:
    """Images `(E, C, H, W)` uint8 with so many channels and pixels, as `Mixed` says."""
    if images.shape[1:] == (channels, size, size):
        return images
    return torch.cat([_in_shape(part.float(), channels, size) for part in images.split(AT_ONCE)])


def _in_shape(images: Tensor, channels: int, size: int) -> Tensor:
    if images.shape[2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    if images.shape[1] == 3 and channels == 1:
        images = torch.einsum("echw,c->ehw", images, images.new_tensor(GREY))[:, None]
    return images.round().clamp(0, 255).byte().expand(-1, channels, -1, -1)


def _check_names(sources: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    if not sources:
        raise ConfigError("sources is empty; name at least one data set.")
    if odd := [name for name in sources if not name or set(name) & set("./ ")]:
        raise ConfigError(
            f"the source {odd[0]!r} gets names such as test/{odd[0]}/acc; give it a name without . / and spaces."
        )
    if unlike := weights.keys() ^ sources.keys():
        raise ConfigError(
            f"weights are of {', '.join(weights)}, but sources are {', '.join(sources)}; in one of them only: "
            f"{', '.join(sorted(unlike))}. Give each source a weight."
        )
    if min(weights.values()) < 0 or not sum(weights.values()) > 0:
        raise ConfigError(f"weights={dict(weights)} must not be negative, and one must be more than 0.")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
