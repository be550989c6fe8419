"""Domains: the same classes under other conditions, some of which are not trained on.

Each domain has images of its own, turned by its angle, as in RotatedMNIST of Gulrajani, Lopez-Paz: "In Search of Lost
Domain Generalization" (2021), arXiv:2007.01434.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import episode_keys, subkeys
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.errors import ConfigError, DataError, require_at_least

ROLES = 2001  # the stream of random numbers that says which image is of which domain
DomainImages = dict[Split, Tensor]  # of a split (D, N, M, C, H, W) uint8: M images of N classes in D domains


@dataclass
class Rotations:
    """Images of one data set, shared out over domains by a function of the seed; no image is in two.

    Training and validation have images of all seen domains, test of the unseen ones.

    Args:
        images: where they come from: the images of its training classes, all of them, with the labels 0, 1, ...
        angles: of the seen domains, in degrees, anticlockwise.
        unseen: of the domains that are only tested on.
        train_per_class, val_per_class: images of each class in each seen domain.
        test_per_class: images of each class in each unseen domain.
    """

    images: ClassificationDataModule
    angles: Sequence[float] = (0.0, 15.0, 30.0, 45.0, 60.0)
    unseen: Sequence[float] = (75.0,)
    train_per_class: int = 100
    val_per_class: int = 20
    test_per_class: int = 150

    def __post_init__(self) -> None:
        names = ("train_per_class", "val_per_class", "test_per_class")
        require_at_least(1, **{name: getattr(self, name) for name in names})
        if len(self.angles) < 2 or not len(self.unseen):
            raise ConfigError(
                f"angles={list(self.angles)} must be two or more, so that one can be held out from the others, and "
                f"unseen={list(self.unseen)} at least one."
            )
        if len({angle % 360 for angle in (*self.angles, *self.unseen)}) < len(self.angles) + len(self.unseen):
            raise ConfigError(
                f"angles={list(self.angles)} and unseen={list(self.unseen)} have the same twice; a domain is seen or "
                "unseen."
            )

    @property
    def name(self) -> str:
        return f"rotated {self.images.name}"

    def describe(self, split: Split) -> str:
        """`75 degrees, trained on 0, 15, 30, 45, 60`"""
        seen, unseen = (", ".join(f"{angle:g}" for angle in angles) for angles in (self.angles, self.unseen))
        return f"{unseen} degrees, trained on {seen}" if split == "test" else f"{seen} degrees"

    def load(self, seed: int) -> DomainImages:
        """All images of the three splits. Raises `DataError` where there are not so many."""
        bank = self.images.load_source("train")
        # Test images come first, so that they are the same however many the others are.
        wanted: list[tuple[Split, float, int]] = [("test", angle, self.test_per_class) for angle in self.unseen]
        wanted += [("train", angle, self.train_per_class) for angle in self.angles]
        wanted += [("val", angle, self.val_per_class) for angle in self.angles]
        needed = sum(size for _, _, size in wanted)
        if (fewest := int(bank.size.min())) < needed:
            raise DataError(
                f"a class of {self.images.name} has {fewest} images, but the {len(self.angles)} seen domains with "
                f"{self.train_per_class} to train on and {self.val_per_class} for validation and the "
                f"{len(self.unseen)} unseen with {self.test_per_class} need {needed}; lower one of the numbers per "
                "class."
            )
        keys = subkeys(episode_keys(seed, ROLES, [0]), np.arange(len(bank.size)))[0]
        order = [first + subkeys(key, np.arange(size)).argsort(kind="stable")
                 for first, size, key in zip(bank.first, bank.size, keys, strict=True)]  # fmt: skip
        rows_NM = torch.from_numpy(np.stack([of_class[:needed] for of_class in order]))
        parts: dict[Split, list[Tensor]] = {"train": [], "val": [], "test": []}
        for (split, angle, _), rows in zip(wanted, rows_NM.split([size for _, _, size in wanted], dim=1), strict=True):
            parts[split].append(turned(bank.inputs[rows.flatten()], angle).unflatten(0, rows.shape))
        return {split: torch.stack(of_domains) for split, of_domains in parts.items()}


def turned(images: Tensor, degrees: float) -> Tensor:
    """Square images `(E, C, H, H)` uint8, turned anticlockwise about their middle, bilinear, 0 where nothing was."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    towards = torch.tensor([[c, -s, 0.0], [s, c, 0.0]], dtype=torch.float64).expand(len(images), 2, 3)
    grid = F.affine_grid(towards, list(images.shape), align_corners=False)
    return F.grid_sample(images.double(), grid, align_corners=False).round().clamp(0, 255).byte()
