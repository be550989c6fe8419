"""Episodes as an indexed collection: episode `i` of a split is a pure function of (seed, split, i)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules.sampling import Keys, choose, episode_keys, subkeys, uniform
from lightning_meta.errors import ConfigError

Split = Literal["train", "val", "test"]
Labels = Literal["shuffled", "fixed", "class"]
TaskAugmentation = Literal["rotate", "mix"]
STREAM = {"train": 0, "val": 1, "test": 2}  # which stream of random numbers a split draws from
ORDER = 1000  # of a support set; the smaller indices of an episode's keys are its source's


class EpisodeShape(NamedTuple):
    """Classes per episode, and support and query examples per class. Regression tasks have one "class"."""

    n_way: int
    k_shot: int
    n_query: int

    def __str__(self) -> str:
        if self.n_way == 1:
            return f"{self.k_shot}-shot, {self.n_query} query points"
        return f"{self.n_way}-way {self.k_shot}-shot, {self.n_query} query per class"


class TaskSource(Protocol):
    """A distribution of tasks from which episodes are drawn by key."""

    def check(self, shape: EpisodeShape) -> None:
        """Raise `DataError` or `ConfigError` when episodes of this shape cannot be drawn."""

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """One episode for each key, stacked on a leading task axis T."""

    def to(self, device: torch.device) -> "TaskSource":
        """A source whose episodes are made on `device`."""


@dataclass(frozen=True)
class ClassBank:
    """Labelled examples held once in memory, gathered by index into whole meta-batches.

    Attributes:
        images: the examples, those of a class side by side: `(E, C, H, W)` uint8, where 0 is background. Or texts,
            `(E, L)` int64, each a row of token ids.
        first: `(classes,)` index of each class's first example.
        size: `(classes,)` number of examples of each class.
        labels: `shuffled`: the position of the class in the episode's random order, so that labels are permuted between
            episodes. `fixed`: every class keeps one of the N labels in all episodes, and an episode has one class of
            each label. `class`: the index of the class in the bank.
        augmentation: makes new classes of those drawn: `mix` (see `_mix`), then `rotate` by 0, 90, 180 or 270 degrees.
    """

    images: Tensor
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

    def thinned(self, classes: int) -> "ClassBank":
        """The bank with only so many of its classes, taken at even distances in their order."""
        if not 1 <= classes <= len(self.size):
            raise ConfigError(f"train_classes={classes} must be between 1 and the {len(self.size)} classes there are.")
        kept = np.arange(classes) * len(self.size) // classes
        return replace(self, first=self.first[kept], size=self.size[kept])

    def examples(self) -> Tensor:
        """The examples of all classes, as they are held; of a thinned bank, those of the classes that are left."""
        rows = [np.arange(size) + first for first, size in zip(self.first, self.size, strict=True)]
        return self.images[torch.from_numpy(np.concatenate(rows)).to(self.images.device)]

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
        if self.augmentation and self.images.dtype != torch.uint8:
            raise ConfigError(
                f"task_augmentation={list(self.augmentation)} is for images, but the examples are rows of "
                f"{self.images.shape[1]} token ids; set it to []."
            )
        height, width = self.images.shape[-2:]
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

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Draw `(T, N*K, ...)` support and `(T, N*Q, ...)` query examples, class by class.

        Images are float32 in [0, 1]; token ids stay as they are.
        """
        n_way, k_shot, n_query = shape
        class_key, example_key, turn_key, mix_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        classes_TN = self._draw_classes(class_key, n_way)
        # An example is the mean of E images.
        rows_ETNM = self._draw_rows(example_key, classes_TN, k_shot + n_query)[None]
        if "mix" in self.augmentation:
            rows_ETNM = self._mix(mix_key, classes_TN, rows_ETNM[0])
        labels_TN = classes_TN if self.labels == "class" else np.tile(np.arange(n_way), (len(keys), 1))
        turns_TN = (subkeys(turn_key, range(n_way)) % np.uint64(4)).astype(np.int64)
        rows, labels, turns = (
            torch.from_numpy(array).to(self.images.device) for array in (rows_ETNM, labels_TN, turns_TN)
        )

        def gather(rows_ETNK: Tensor) -> Batch:
            images = self.images.index_select(0, rows_ETNK.flatten())
            images = images.float().div_(255) if images.dtype == torch.uint8 else images
            images = images.view(*rows_ETNK.shape, *images.shape[1:])
            images = images.mean(0) if "mix" in self.augmentation else images[0]
            if "rotate" in self.augmentation:
                images = quarter_turns(images, turns)
            return Batch(images.flatten(1, 2), labels.repeat_interleave(rows_ETNK.shape[3], dim=1))

        return Episode(support=gather(rows[..., :k_shot]), query=gather(rows[..., k_shot:]))

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

    def _draw_rows(self, keys: Keys, classes_TN: npt.NDArray[np.int64], examples: int) -> npt.NDArray[np.int64]:
        """Where in `images` the drawn examples of each class are, `(T, N, examples)`."""
        drawn_TNM = choose(subkeys(keys, np.arange(classes_TN.shape[1])), self.size[classes_TN], examples)
        return self.first[classes_TN][..., None] + drawn_TNM

    def _mix(
        self, keys: Keys, classes_TN: npt.NDArray[np.int64], rows_TNM: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Pair the examples of a class with those of a second class, or with themselves, at even odds: `(2, T, N, M)`.

        The second classes of an episode differ from each other and from all those drawn for it. Were a class part of
        two mixtures, the same pair could be mixed twice and have two labels.
        """
        n_way, examples = rows_TNM.shape[1:]
        coin_key, class_key, example_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        others_TN = choose(class_key, len(self.size) - n_way, n_way)
        for taken_T in np.sort(classes_TN, axis=1).T:  # from numbers among the classes left to numbers among all
            others_TN += others_TN >= taken_T[:, None]
        mixed_TN = uniform(coin_key, n_way) < 0.5
        other_rows_TNM = self._draw_rows(example_key, others_TN, examples)
        return np.stack([rows_TNM, np.where(mixed_TN[..., None], other_rows_TNM, rows_TNM)])

    def to(self, device: torch.device) -> "ClassBank":
        return replace(self, images=self.images.to(device))


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each group of images `(*groups, K, C, H, H)` by its multiple of 90 degrees, `(*groups)`."""
    turned = images.clone()
    for count in (1, 2, 3):
        chosen = turns == count
        turned[chosen] = torch.rot90(images[chosen], count, dims=(-2, -1))
    return turned


class TaskDataset(Dataset[Any]):
    """The endless list of a split's tasks. Any index is valid; the loader decides which ones are visited."""

    seed: int

    def __getitems__(self, ids: Sequence[int]) -> Any:
        """The tasks `ids` as one meta-batch: a pytree with a leading task axis T."""
        raise NotImplementedError


class EpisodeDataset(TaskDataset):
    """The `TaskDataset` of a split's episodes.

    `support_as_stream` puts each support set in a random order, which belongs to the episode as its images do.
    """

    def __init__(
        self, source: TaskSource, shape: EpisodeShape, seed: int, split: Split, support_as_stream: bool = False
    ) -> None:
        source.check(shape)
        self.source, self.shape, self.seed, self.split = source, shape, seed, split
        self.support_as_stream = support_as_stream

    def __getitems__(self, ids: Sequence[int]) -> Episode:
        """The episodes `ids` as one meta-batch."""
        keys = episode_keys(self.seed, STREAM[self.split], ids)
        episode = self.source.sample(keys, self.shape)
        if not self.support_as_stream:
            return episode
        size = episode.support.y.shape[1]
        order_TS = torch.from_numpy(choose(subkeys(keys, [ORDER])[..., 0], size, size)).to(episode.support.y.device)
        rows_T1 = torch.arange(len(ids), device=order_TS.device)[:, None]
        return episode._replace(support=Batch(*(leaf[rows_T1, order_TS] for leaf in episode.support)))

    def __getitem__(self, index: int) -> Episode:
        """Episode `index` alone, without a task axis."""
        return tree_map(lambda leaf: leaf[0], self.__getitems__([index]))


class EpisodeLoader:
    """Iterates over meta-batches by episode (or other task) id and can be resumed in the middle of an epoch.

    Its state is one counter of meta-batches, the same on every rank. Lightning stores it with the checkpoint because
    the class has `state_dict` and `load_state_dict`.

    Args:
        dataset: where episodes come from.
        ids_of_batch: the episode ids of meta-batch `b`, counted from the start of training.
        batches_per_epoch: after how many meta-batches an iteration ends.
        endless: continue the count in the next epoch (training) or start again (a frozen list of episodes).
        num_workers: processes that draw episodes ahead. 0 is usually fastest: drawing costs microseconds.
    """

    def __init__(
        self,
        dataset: TaskDataset,
        ids_of_batch: Callable[[int], Sequence[int]],
        batches_per_epoch: int,
        endless: bool,
        num_workers: int = 0,
    ) -> None:
        self.dataset, self.ids_of_batch = dataset, ids_of_batch
        self.batches_per_epoch, self.endless, self.num_workers = batches_per_epoch, endless, num_workers
        self.position = 0  # meta-batches handed out so far

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Any]:
        if not self.endless:
            self.position = 0
        end = (self.position // self.batches_per_epoch + 1) * self.batches_per_epoch
        batches = [list(self.ids_of_batch(b)) for b in range(self.position, end)]
        loader: DataLoader[Any] = DataLoader(
            self.dataset, batch_sampler=batches, collate_fn=_already_collated, num_workers=self.num_workers
        )
        for episode in loader:
            self.position += 1
            yield episode

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def _already_collated(episode: Any) -> Any:
    """`EpisodeDataset.__getitems__` makes whole meta-batches, so nothing is left to collate."""
    return episode
