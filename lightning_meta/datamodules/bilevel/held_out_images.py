"""Images to learn from, with labels that may be wrong or classes that are rare, and clean images held out from them."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.augment import LARGEST, augment, check_ranges
from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys, uniform
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Steps
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.errors import ConfigError, DataError, require_at_least

ROLES = 2000  # the stream of random numbers that says which image is for what
ORDER, WRONG, MOVED = 1, 2, 3  # of an image within its class, of those whose label is wrong, of how images are changed


class HeldOutImages(BilevelDataModule):
    """One data set of images, split by image: to learn from, held out, for validation, and for test.

    Which image is for what is a function of the seed; the images for test, then those for validation, are the same
    however many the others are.

    Args:
        images: where they come from: the images of its training classes. Only its data are used, not its episodes.
        classes: which classes, by their place; their labels are 0, 1, ... in this order. None: all.
        support_per_class: images to learn from, of the largest class.
        held_out_per_class, val_per_class, test_per_class: images whose labels are right, of each class.
        imbalance: the largest class to learn from has so many times the images of the smallest. The first class is the
            largest, and sizes fall exponentially from one to the next.
        moved: images that are held out, for validation and for test are changed, those to learn from are not. How
            strong an operation may be, by its name (see `core.augment`): each image has strengths of its own, uniform
            from minus that to that.
        flip: the part of the images to learn from whose label is wrong: that of another class, all equally likely.
        batch_size: of an inner step, drawn with replacement.
        query_size: held-out images in an outer update, drawn without. None: all of them.
        **kwargs: of `BilevelDataModule`.
    """

    def __init__(
        self,
        images: ClassificationDataModule,
        classes: Sequence[int] | None = None,
        support_per_class: int = 300,
        held_out_per_class: int = 20,
        val_per_class: int = 50,
        test_per_class: int = 100,
        imbalance: float = 1.0,
        flip: float = 0.0,
        moved: Mapping[str, float] | None = None,
        batch_size: int = 100,
        query_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.images, self.classes = images, None if classes is None else list(classes)
        self.sizes = {"test": test_per_class, "val": val_per_class, "held_out": held_out_per_class}
        self.support_per_class, self.imbalance, self.flip = support_per_class, imbalance, flip
        self.batch_size, self.query_size = batch_size, query_size
        names = ("support_per_class", "held_out_per_class", "val_per_class", "test_per_class", "batch_size")
        values = (support_per_class, held_out_per_class, val_per_class, test_per_class, batch_size)
        require_at_least(1, **dict(zip(names, values, strict=True)))
        if not imbalance >= 1:
            raise ConfigError(f"imbalance={imbalance} must be at least 1, the largest class over the smallest.")
        if not 0 <= flip <= 1:
            raise ConfigError(f"flip={flip} must be between 0 and 1, the part of labels that are wrong.")
        self.moved = dict(moved or {})
        check_ranges("data.moved", self.moved)
        self.name = images.name

    def prepare_data(self) -> None:
        self.images.prepare_data()

    def setup(self, stage: str) -> None:
        if hasattr(self, "n_classes"):
            return
        bank = self.images.load_source("train")
        classes = list(range(len(bank.size))) if self.classes is None else self.classes
        if len({*classes}) < max(2, len(classes)) or not {*classes} <= {*range(len(bank.size))}:
            raise ConfigError(
                f"classes={classes} must be two or more different ones of the {len(bank.size)} of {self.images.name}, "
                f"0 to {len(bank.size) - 1}."
            )
        self.n_classes = len(classes)
        wanted = self.support_sizes()
        parts: dict[str, list[npt.NDArray[np.int64]]] = {role: [] for role in (*self.sizes, "support")}
        for c, wanted_of_class in zip(classes, wanted, strict=True):
            needed, there = wanted_of_class + sum(self.sizes.values()), int(bank.size[c])
            if needed > there:
                raise DataError(
                    f"class {c} of {self.images.name} has {there} images, but {wanted_of_class} to learn from, "
                    f"{self.sizes['held_out']} held out, {self.sizes['val']} for validation and {self.sizes['test']} "
                    f"for test are {needed}; lower one of the numbers per class."
                )
            rows = bank.first[c] + self._order(c, there)
            for role, size in (*self.sizes.items(), ("support", wanted_of_class)):
                parts[role].append(rows[:size])
                rows = rows[size:]
        self.pixels, self.rows, self.labels = bank.inputs, {}, {}
        self.changed: dict[str, Tensor] = {}  # all images of a role, where they are not those of the source
        for role, of_classes in parts.items():
            self.rows[role] = torch.from_numpy(np.concatenate(of_classes))
            self.labels[role] = torch.arange(self.n_classes).repeat_interleave(torch.tensor([*map(len, of_classes)]))
        if self.moved:
            self.changed = {role: self._change(role) for role in self.sizes}
        self.given_labels = self._flipped(self.labels["support"])
        if self.query_size is not None and not 1 <= self.query_size <= len(self.rows["held_out"]):
            raise ConfigError(
                f"query_size={self.query_size}, but {len(self.rows['held_out'])} images are held out; lower it or "
                "raise held_out_per_class."
            )

    def support_sizes(self) -> list[int]:
        """How many images of each class there are to learn from."""
        falls = self.imbalance ** (-1 / (self.n_classes - 1))
        return [ceil(round(self.support_per_class * falls**c, 6)) for c in range(self.n_classes)]

    def _key(self, *path: int) -> Keys:
        key = episode_keys(self.seed, ROLES, [0])
        for number in path:
            key = subkeys(key, [number])[:, 0]
        return key

    def _order(self, c: int, size: int) -> npt.NDArray[np.int64]:
        return subkeys(self._key(ORDER, c), np.arange(size))[0].argsort(kind="stable")

    def _flipped(self, labels_E: Tensor) -> Tensor:
        """The labels to learn from."""
        order = subkeys(self._key(WRONG, 0), np.arange(len(labels_E)))[0].argsort(kind="stable")
        wrong = torch.from_numpy(order[: round(self.flip * len(labels_E))])
        moves = torch.from_numpy((uniform(self._key(WRONG, 1), len(wrong))[0] * (self.n_classes - 1)).astype(np.int64))
        given = labels_E.clone()
        given[wrong] = (given[wrong] + 1 + moves) % self.n_classes
        return given

    def _change(self, role: str) -> Tensor:
        """The images of a role, of which each is always changed alike: by its row in the source."""
        images = self.read(role, torch.arange(len(self.rows[role])))
        strengths = {}
        for name, largest in self.moved.items():
            keys = subkeys(self._key(MOVED, [*LARGEST].index(name)), self.rows[role].numpy())[0]
            strengths[name] = torch.from_numpy(uniform(keys, 1, -largest, largest)[:, 0]).to(images)
        return augment(images, strengths)

    def read(self, role: str, places: Tensor) -> Tensor:
        """Images of a role at places of any shape: `(*places.shape, C, H, W)`, float32 in [0, 1]."""
        if role in self.changed:
            return self.changed[role][places]
        images = self.pixels.index_select(0, self.rows[role][places.flatten()])
        images = images.float().div_(255) if images.dtype == torch.uint8 else images
        return images.view(*places.shape, *images.shape[1:])

    def steps(self, keys: Keys, steps: Steps) -> tuple[Batch, Tensor]:
        draws_TSB = uniform(subkeys(keys, steps), self.batch_size)
        places_TSB = torch.from_numpy((draws_TSB * len(self.given_labels)).astype(np.int64))
        given_TSB = self.given_labels[places_TSB]
        return Batch(self.read("support", places_TSB), given_TSB), given_TSB == self.labels["support"][places_TSB]

    def held_out(self, keys: Keys) -> Batch:
        there = len(self.rows["held_out"])
        if self.query_size is None:
            places_TQ = torch.arange(there).expand(len(keys), -1)
        else:
            places_TQ = torch.from_numpy(choose(keys, there, self.query_size))
        return Batch(self.read("held_out", places_TQ), self.labels["held_out"][places_TQ])

    def learned_from(self) -> Batch:
        return Batch(self.read("support", torch.arange(len(self.given_labels))), self.given_labels)

    def all_held_out(self) -> Batch:
        labels = self.labels["held_out"]
        return Batch(self.read("held_out", torch.arange(len(labels))), labels)

    def judges(self, split: Split) -> Batch:
        order = subkeys(self._key(ORDER, 10**6), np.arange(len(self.rows[split])))[0].argsort(kind="stable")
        places = torch.from_numpy(order)
        return Batch(self.read(split, places), self.labels[split][places])

    def facts(self, split: Split) -> dict[str, Any]:
        mine = {"classes": self.n_classes, "support": len(self.given_labels), "held_out": len(self.rows["held_out"])}
        return {
            **super().facts(split), **mine, "flip": self.flip, "imbalance": self.imbalance,
            "moved": self.moved,
            "batch_size": self.batch_size, "judged_on": len(self.rows[split]),
        }  # fmt: skip

    def describe(self, split: Split) -> str:
        faults = [f"{self.flip:.0%} of labels wrong"] * bool(self.flip)
        faults += [f"imbalance {self.imbalance:g}"] * (self.imbalance > 1)
        faults += ["the others moved: " + ", ".join(f"{k} {v:g}" for k, v in self.moved.items())] * bool(self.moved)
        size = (
            f"{len(self.given_labels)} images of {self.n_classes} classes to learn from, {len(self.rows['held_out'])}"
        )
        return ", ".join([f"{size} held out", *faults, f"judged on {len(self.rows[split])}", super().describe(split)])
