"""Labelled examples in memory, from which N-way episodes are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import Keys, choose, subkeys, uniform
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError

Labels = Literal["shuffled", "fixed", "class"]
TaskAugmentation = Literal["rotate", "mix"]


class Drawn(NamedTuple):
    """Episodes of a `ClassBank`.

    Attributes:
        rows: `(T, E, N, M)` where the examples are, in the order of use; each is the mean of E images.
        labels: `(T, N)`.
        turns: `(T, N)` by how many quarters of a turn the images of a class are rotated.
    """

    rows: Tensor
    labels: Tensor
    turns: Tensor


@dataclass(frozen=True)
class ClassBank(TaskSource):
    """Labelled examples held once in memory, gathered by index into whole meta-batches.

    Attributes:
        inputs: the examples, those of a class side by side: `(E, C, H, W)` uint8, where 0 is background. Or texts,
            `(E, L)` int64, each a row of token ids.
        first: `(classes,)` index of each class's first example.
        size: `(classes,)` number of examples of each class.
        labels: `shuffled`: the position of the class in the episode's random order, so that labels are permuted between
            episodes. `fixed`: every class keeps one of the N labels in all episodes, and an episode has one class of
            each label. `class`: the index of the class in the bank.
        augmentation: makes new classes of those drawn: `mix` (see `_mix`), then `rotate` by 0, 90, 180 or 270 degrees.
    """

    inputs: Tensor
    first: np.ndarray
    size: np.ndarray
    labels: Labels = "shuffled"
    augmentation: tuple[TaskAugmentation, ...] = ()

    @classmethod
    def from_classes(cls, images: Tensor) -> "ClassBank":
        """Build from `(classes, examples, ...)`: every class with the same number of examples."""
        classes, examples = images.shape[:2]
        return cls(images.flatten(0, 1).contiguous(), np.arange(classes) * examples, np.full(classes, examples))

    @classmethod
    def from_ragged(cls, classes: Sequence[Tensor]) -> "ClassBank":
        """Build from one tensor of examples per class, `(examples, ...)`, whose numbers of examples may differ."""
        size = np.array([len(images) for images in classes])
        return cls(torch.cat(list(classes)), size.cumsum() - size, size)

    def joined(self, other: "ClassBank") -> "ClassBank":
        """The bank with the classes of another one after its own."""
        return replace(
            self,
            inputs=torch.cat([self.inputs, other.inputs]),
            first=np.concatenate([self.first, other.first + len(self.inputs)]),
            size=np.concatenate([self.size, other.size]),
        )

    def thinned(self, classes: int) -> "ClassBank":
        """The bank with only so many of its classes, taken at even distances in their order."""
        if not 1 <= classes <= len(self.size):
            raise ConfigError(f"train_classes={classes} must be between 1 and the {len(self.size)} classes there are.")
        kept = np.arange(classes) * len(self.size) // classes
        return replace(self, first=self.first[kept], size=self.size[kept])

    def examples(self) -> Tensor:
        """The examples of all classes, as they are held; of a thinned bank, those of the classes that are left."""
        rows = [np.arange(size) + first for first, size in zip(self.first, self.size, strict=True)]
        return self.inputs[torch.from_numpy(np.concatenate(rows)).to(self.inputs.device)]

    def check(self, shape: EpisodeShape) -> None:
        n_classes, fewest = len(self.size), int(self.size.min(initial=2**31))
        if shape.n_way > n_classes:
            raise ConfigError(
                f"n_way={shape.n_way}, but the split has {n_classes} classes; lower n_way or take a larger split."
            )
        if "mix" in self.augmentation and 2 * shape.n_way > n_classes:
            raise ConfigError(
                f"mixing takes a second class for each of n_way={shape.n_way}, so it needs {2 * shape.n_way}, but the "
                f"split has {n_classes} classes; lower n_way or leave mix out of task_augmentation."
            )
        if self.augmentation and self.inputs.dtype != torch.uint8:
            raise ConfigError(
                f"task_augmentation={list(self.augmentation)} is for images, but the examples are rows of "
                f"{self.inputs.shape[1]} token ids; set it to []."
            )
        height, width = self.inputs.shape[-2:]
        if "rotate" in self.augmentation and height != width:
            raise ConfigError(
                f"images of {height} x {width} pixels change their shape in a quarter turn; make them square or leave "
                "rotate out of task_augmentation."
            )
        if shape.k_shot + shape.n_query > fewest:
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} examples are needed of every class, but the smallest "
                f"class has {fewest}; lower k_shot or n_query."
            )

    def draw(self, keys: Keys, shape: EpisodeShape) -> Drawn:
        n_way, k_shot, n_query = shape
        class_key, example_key, turn_key, mix_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        classes_TN = self._draw_classes(class_key, n_way)
        rows_TENM = self.draw_rows(example_key, classes_TN, k_shot + n_query)[:, None]
        if "mix" in self.augmentation:
            rows_TENM = self._mix(mix_key, classes_TN, rows_TENM[:, 0])
        labels_TN = classes_TN if self.labels == "class" else np.tile(np.arange(n_way), (len(keys), 1))
        turns_TN = (subkeys(turn_key, range(n_way)) % np.uint64(4)).astype(np.int64)
        return Drawn(*(torch.from_numpy(array).to(self.inputs.device) for array in (rows_TENM, labels_TN, turns_TN)))

    def make(self, drawn: Drawn, shape: EpisodeShape) -> Episode:
        """Gather `(T, N*K, ...)` support and `(T, N*Q, ...)` query examples, class by class.

        Images are float32 in [0, 1]; token ids stay as they are.
        """

        def gather(rows_TENK: Tensor) -> Batch:
            images = self.take(rows_TENK.flatten())
            images = images.view(*rows_TENK.shape, *images.shape[1:])
            images = images.mean(1) if "mix" in self.augmentation else images[:, 0]
            if "rotate" in self.augmentation:
                images = quarter_turns(images, drawn.turns)
            labels_TNK = drawn.labels[..., None].expand(-1, -1, rows_TENK.shape[3])
            return Batch(images.flatten(1, 2), labels_TNK.flatten(1))

        k_shot = shape.k_shot
        return Episode(support=gather(drawn.rows[..., :k_shot]), query=gather(drawn.rows[..., k_shot:]))

    def take(self, rows_B: Tensor) -> Tensor:
        """The examples in these places `(B, ...)`, as episodes hold them."""
        examples = self.inputs.index_select(0, rows_B)
        return examples.float().div_(255) if examples.dtype == torch.uint8 else examples

    def _draw_classes(self, keys: Keys, n_way: int) -> npt.NDArray[np.int64]:
        """Classes `(T, N)` of the episodes, distinct within an episode."""
        if self.labels != "fixed":
            return choose(keys, len(self.size), n_way)
        # The class in place p of the fixed order has label p mod N.
        label_N = np.arange(n_way)
        classes_of_label_N = (len(self.size) - 1 - label_N) // n_way + 1
        picks_TN = choose(subkeys(keys, label_N), classes_of_label_N, 1)[..., 0]
        return self._fixed_order[picks_TN * n_way + label_N]

    @cached_property
    def _fixed_order(self) -> npt.NDArray[np.int64]:
        """A random order of the classes, the same for every seed. It parts classes that are neighbours or rotations."""
        return subkeys(np.zeros((), np.uint64), np.arange(len(self.size))).argsort(kind="stable")

    def draw_rows(self, keys: Keys, classes_TN: npt.NDArray[np.int64], examples: int) -> npt.NDArray[np.int64]:
        """Where in `inputs` the drawn examples of each class are, `(T, N, examples)`."""
        drawn_TNM = choose(subkeys(keys, np.arange(classes_TN.shape[1])), self.size[classes_TN], examples)
        return self.first[classes_TN][..., None] + drawn_TNM

    def _mix(
        self, keys: Keys, classes_TN: npt.NDArray[np.int64], rows_TNM: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Pair the examples of a class with those of a second class, or with themselves, at even odds: `(T, 2, N, M)`.

        The second classes of an episode differ from each other and from all those drawn for it. Were a class part of
        two mixtures, the same pair could be mixed twice and have two labels.
        """
        n_way, examples = rows_TNM.shape[1:]
        coin_key, class_key, example_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        others_TN = choose(class_key, len(self.size) - n_way, n_way)
        for taken_T in np.sort(classes_TN, axis=1).T:  # from numbers among the classes left to numbers among all
            others_TN += others_TN >= taken_T[:, None]
        mixed_TN = uniform(coin_key, n_way) < 0.5
        other_rows_TNM = self.draw_rows(example_key, others_TN, examples)
        return np.stack([rows_TNM, np.where(mixed_TN[..., None], other_rows_TNM, rows_TNM)], axis=1)

    def to(self, device: torch.device) -> "ClassBank":
        return replace(self, inputs=self.inputs.to(device))


class EmbeddedBank(TaskSource):
    """A `ClassBank` whose episodes hold features of its examples, computed when the first one is drawn."""

    def __init__(self, bank: ClassBank, embedding: Callable[[Tensor], Tensor]) -> None:
        self.bank, self.embedding = bank, embedding

    @cached_property
    def features(self) -> ClassBank:
        return replace(self.bank, inputs=self.embedding(self.bank.inputs))

    def check(self, shape: EpisodeShape) -> None:
        self.bank.check(shape)

    def draw(self, keys: Keys, shape: EpisodeShape) -> Drawn:
        return self.bank.draw(keys, shape)

    def make(self, drawn: Drawn, shape: EpisodeShape) -> Episode:
        return self.features.make(drawn, shape)

    def unembedded(self) -> ClassBank:
        return self.bank

    def to(self, device: torch.device) -> "EmbeddedBank":
        return EmbeddedBank(self.bank.to(device), self.embedding)


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each group of images `(*groups, K, C, H, H)` by its multiple of 90 degrees, `(*groups)`."""
    *groups, examples, channels, height, width = images.shape
    places = torch.arange(height * width, device=images.device).view(height, width)
    of_turn = torch.stack([torch.rot90(places, count) for count in range(4)]).flatten(1)
    # Gathered, not chosen by a mask, for whose count of chosen images a GPU would be waited for.
    places = of_turn[turns][..., None, None, :].expand(*groups, examples, channels, -1)
    return images.flatten(-2).gather(-1, places).view(images.shape)
