"""Scenes with several objects: images of a data set side by side, with masks and boxes that cost nothing.

An episode has N classes. A support scene shows one object of its class among others of classes that the episode does
not ask for, the clutter; only the first one is marked. A query scene has an object of its class; its others are of the
episode's classes or clutter, at even odds. No query shows an image that a support set marks.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, subkeys, uniform
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError, require_at_least

INK = 0.25  # pixels above it belong to an object


class DrawnScenes(NamedTuple):
    """M scenes of O objects for each of T episodes: what is seen, its label (-1: clutter), and where it begins."""

    rows: Tensor  # (T, M, O), of the bank
    labels: Tensor
    tops: Tensor
    lefts: Tensor


@dataclass(frozen=True)
class SceneBank(TaskSource):
    """Composes scenes of a bank's images, each in a cell of its own of a square grid; see `Scenes` for the numbers."""

    bank: ClassBank
    targets: Literal["masks", "boxes"] = "masks"
    grid: int = 2
    objects: int = 3
    clutter: int = 5
    jitter: int = 4
    thickness: int = 1

    @property
    def cell(self) -> int:
        return self.bank.inputs.shape[-1] + self.jitter

    def check(self, shape: EpisodeShape) -> None:
        height, width = self.bank.inputs.shape[-2:]
        if height != width:
            raise ConfigError(f"scenes are made of square images, but these are {height} x {width} pixels.")
        if shape.n_way + self.clutter > (there := len(self.bank.size)):
            raise ConfigError(
                f"n_way={shape.n_way} and clutter={self.clutter} need {shape.n_way + self.clutter} classes, but the "
                f"split has {there}; lower one of them."
            )
        self.bank.check(EpisodeShape(shape.n_way, shape.k_shot, 1))

    def draw(self, keys: Keys, shape: EpisodeShape) -> DrawnScenes:
        n_way, k_shot, n_query = shape
        taught, scenes = n_way * k_shot, n_way * (k_shot + n_query)
        of_objects = (len(keys), scenes, self.objects)
        class_key, shot_key, kind_key, example_key, cell_key, shift_key = np.moveaxis(subkeys(keys, range(6)), -1, 0)
        classes_TX = choose(class_key, len(self.bank.size), n_way + self.clutter)
        shots_TNK = choose(subkeys(shot_key, range(n_way)), self.bank.size[classes_TX[:, :n_way]], k_shot)
        # Which of the X classes an object has.
        odds = uniform(kind_key, 2 * scenes * self.objects).reshape(*of_objects, 2)
        asked_for = (odds[..., 0] < 0.5) & (np.arange(scenes) >= taught)[:, None]
        slots = np.where(asked_for, odds[..., 1] * n_way, n_way + odds[..., 1] * self.clutter).astype(np.int64)
        slots[..., 0] = np.concatenate([np.arange(n_way).repeat(k_shot), np.arange(n_way).repeat(n_query)])
        # Which example: of the episode's classes one that no support scene marks.
        known = slots < n_way
        classes = np.take_along_axis(classes_TX, slots.reshape(len(keys), -1), 1).reshape(of_objects)
        left = self.bank.size[classes] - k_shot * known
        picks = (uniform(example_key, scenes * self.objects).reshape(of_objects) * left).astype(np.int64)
        for taken_TN in np.moveaxis(np.sort(shots_TNK, -1), -1, 0):  # from numbers among those left to numbers of all
            taken = np.take_along_axis(taken_TN, np.where(known, slots, 0).reshape(len(keys), -1), 1)
            picks += known & (picks >= taken.reshape(of_objects))
        picks[:, :taught, 0] = shots_TNK.reshape(len(keys), -1)
        cells = choose(subkeys(cell_key, range(scenes)), self.grid**2, self.objects)
        shifts = uniform(shift_key, 2 * scenes * self.objects).reshape(2, *of_objects) * (self.jitter + 1)
        tops, lefts = np.stack(np.divmod(cells, self.grid)) * self.cell + shifts.astype(np.int64)
        drawn = (self.bank.first[classes] + picks, np.where(known, slots, -1), tops, lefts)
        return DrawnScenes(*(torch.from_numpy(part).to(self.bank.inputs.device) for part in drawn))

    def make(self, drawn: DrawnScenes, shape: EpisodeShape) -> Episode:
        """Scenes `(T, M, C, H, W)` with their targets: `(T, M, H, W)` masks, or `(T, M, O, 5)` boxes."""
        tasks, scenes, objects = drawn.rows.shape
        images = self.bank.take(drawn.rows.flatten())
        channels, side = images.shape[1:3]
        images = images.view(-1, objects, channels, side, side)
        labels_BO, tops_BO, lefts_BO = (part.flatten(0, 1) for part in drawn[1:])
        steps = torch.arange(side, device=images.device)
        y_BOh1, x_BO1w = (tops_BO[..., None] + steps)[..., None], (lefts_BO[..., None] + steps)[:, :, None]
        scene_B111 = torch.arange(len(images), device=images.device)[:, None, None, None]
        canvas = images.new_zeros(len(images), channels, self.grid * self.cell, self.grid * self.cell)
        canvas[scene_B111, :, y_BOh1, x_BO1w] = images.movedim(2, -1)
        ink_BOhw = images.amax(2) > INK
        if self.targets == "masks":
            thick = F.max_pool2d(ink_BOhw.float(), 2 * self.thickness + 1, 1, self.thickness).long()
            targets = torch.zeros_like(canvas[:, 0], dtype=torch.long)
            targets[scene_B111, y_BOh1, x_BO1w] = thick * (labels_BO + 1)[..., None, None]
        else:
            known = labels_BO >= 0
            (top, bottom), (left, right) = extent(ink_BOhw.any(3)), extent(ink_BOhw.any(2))
            parts = [labels_BO, tops_BO + top, lefts_BO + left, tops_BO + bottom, lefts_BO + right]
            targets = torch.where(known, torch.stack(parts), -1).movedim(0, -1).float()
        taught = shape.n_way * shape.k_shot
        x, y = canvas.unflatten(0, (tasks, scenes)), targets.unflatten(0, (tasks, scenes))
        return Episode(Batch(x[:, :taught], y[:, :taught]), Batch(x[:, taught:], y[:, taught:]))

    def to(self, device: torch.device) -> "SceneBank":
        return replace(self, bank=self.bank.to(device))


def extent(there: Tensor) -> tuple[Tensor, Tensor]:
    """The first place that is true on the last axis and the one after the last; the whole axis where none is."""
    size = there.shape[-1]
    first, after = there.int().argmax(-1), size - there.flip(-1).int().argmax(-1)
    return first, torch.where(there.any(-1), after, size)


class Scenes(EpisodicDataModule):
    """Scenes composed of the images of a data set, for few-shot segmentation or detection.

    A scene is `grid * (image size + jitter)` pixels wide: 64 of Glyphs with two cells a side.

    Args:
        images: where objects come from, with its splits of classes; only its data are used, not its episodes.
        targets: `masks`: for each pixel 0, or 1 + the label of the object there, `(H, W)` int64. `boxes`: for each
            object its label and its top, left, bottom and right edge in pixels, `(O, 5)`; -1 throughout for clutter.
        grid: cells in a row and in a column.
        objects: in a scene, each in a cell of its own.
        clutter: how many other classes an episode has, of which nothing is asked.
        jitter: an object is moved by up to so many pixels within its cell.
        thickness: by so many pixels a mask is thicker than the ink of its object.
        n_way, k_shot, n_query: classes of an episode, and support and query scenes for each.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        images: ClassificationDataModule,
        targets: Literal["masks", "boxes"] = "masks",
        grid: int = 2,
        objects: int = 3,
        clutter: int = 5,
        jitter: int = 4,
        thickness: int = 1,
        n_way: int = 2,
        k_shot: int = 1,
        n_query: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, grid=grid, objects=objects)
        require_at_least(0, jitter=jitter, thickness=thickness)
        if objects > 1:
            require_at_least(1, clutter=clutter)
        if targets not in ("masks", "boxes"):
            raise ConfigError(f"targets={targets!r} must be masks or boxes.")
        if objects > grid**2:
            raise ConfigError(f"objects={objects} do not fit into {grid} x {grid} cells; raise grid or lower objects.")
        self.images = images
        self.settings: dict[str, Any] = dict(
            targets=targets, grid=grid, objects=objects, clutter=clutter, jitter=jitter, thickness=thickness
        )
        self.name = f"{type(self).__name__} of {images.name}"

    def prepare_data(self) -> None:
        self.images.prepare_data()

    def load_source(self, split: Split) -> SceneBank:
        return SceneBank(self.images.load_source(split), **self.settings)

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {key: self.settings[key] for key in ("targets", "grid", "objects", "clutter")}

    def describe(self, split: Split) -> str:
        n_way, k_shot, n_query = self.shapes[split]
        objects, clutter = self.settings["objects"], self.settings["clutter"]
        return (
            f"{n_way}-way {k_shot}-shot, {n_query} query scenes per class, each of {objects} objects; {clutter} other "
            "classes in an episode"
        )
