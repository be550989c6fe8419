"""Episodes as an indexed collection: episode `i` of a split is a pure function of (seed, split, i)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.data import DataLoader, Dataset

from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules.sampling import Keys, choose, episode_keys, subkeys, uniform
from lightning_meta.errors import ConfigError
from lightning_meta.signals import leave_signals_to_the_main_process

Split = Literal["train", "val", "test"]
Labels = Literal["shuffled", "fixed", "class"]
TaskAugmentation = Literal["rotate", "mix"]
STREAM = {"train": 0, "val": 1, "test": 2}  # which stream of random numbers a split draws from
DRAWN_AT_ONCE = 256  # episodes, in the main process
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


class TaskSource:
    """A distribution of tasks from which episodes are drawn by key. One writes `sample`, or `draw` and `make`."""

    def check(self, shape: EpisodeShape) -> None:
        """Raise `DataError` or `ConfigError` when episodes of this shape cannot be drawn."""

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """One episode for each key, stacked on a leading task axis T."""
        return self.make(self.draw(keys, shape), shape)

    def draw(self, keys: Keys, shape: EpisodeShape) -> Any:
        """All that chance decides about one episode for each key: tensors with a leading task axis T.

        It is done for many meta-batches at once, so that what it costs to call many small operations is shared.
        """
        return self.sample(keys, shape)

    def make(self, drawn: Any, shape: EpisodeShape) -> Episode:
        """The episodes of a meta-batch that were drawn."""
        return drawn

    def to(self, device: torch.device) -> "TaskSource":
        """A source whose episodes are made on `device`."""
        raise NotImplementedError


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

    def joined(self, other: "ClassBank") -> "ClassBank":
        """The bank with the classes of another one after its own."""
        return replace(
            self,
            images=torch.cat([self.images, other.images]),
            first=np.concatenate([self.first, other.first + len(self.images)]),
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

    def draw(self, keys: Keys, shape: EpisodeShape) -> Drawn:
        n_way, k_shot, n_query = shape
        class_key, example_key, turn_key, mix_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        classes_TN = self._draw_classes(class_key, n_way)
        rows_TENM = self._draw_rows(example_key, classes_TN, k_shot + n_query)[:, None]
        if "mix" in self.augmentation:
            rows_TENM = self._mix(mix_key, classes_TN, rows_TENM[:, 0])
        labels_TN = classes_TN if self.labels == "class" else np.tile(np.arange(n_way), (len(keys), 1))
        turns_TN = (subkeys(turn_key, range(n_way)) % np.uint64(4)).astype(np.int64)
        return Drawn(*(torch.from_numpy(array).to(self.images.device) for array in (rows_TENM, labels_TN, turns_TN)))

    def make(self, drawn: Drawn, shape: EpisodeShape) -> Episode:
        """Gather `(T, N*K, ...)` support and `(T, N*Q, ...)` query examples, class by class.

        Images are float32 in [0, 1]; token ids stay as they are.
        """

        def gather(rows_TENK: Tensor) -> Batch:
            images = self.images.index_select(0, rows_TENK.flatten())
            images = images.float().div_(255) if images.dtype == torch.uint8 else images
            images = images.view(*rows_TENK.shape, *images.shape[1:])
            images = images.mean(1) if "mix" in self.augmentation else images[:, 0]
            if "rotate" in self.augmentation:
                images = quarter_turns(images, drawn.turns)
            labels_TNK = drawn.labels[..., None].expand(-1, -1, rows_TENK.shape[3])
            return Batch(images.flatten(1, 2), labels_TNK.flatten(1))

        k_shot = shape.k_shot
        return Episode(support=gather(drawn.rows[..., :k_shot]), query=gather(drawn.rows[..., k_shot:]))

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
        other_rows_TNM = self._draw_rows(example_key, others_TN, examples)
        return np.stack([rows_TNM, np.where(mixed_TN[..., None], other_rows_TNM, rows_TNM)], axis=1)

    def to(self, device: torch.device) -> "ClassBank":
        return replace(self, images=self.images.to(device))


class EmbeddedBank(TaskSource):
    """A `ClassBank` whose episodes hold features of its examples, computed when the first one is drawn."""

    def __init__(self, bank: ClassBank, embedding: Callable[[Tensor], Tensor]) -> None:
        self.bank, self.embedding = bank, embedding

    @cached_property
    def features(self) -> ClassBank:
        return replace(self.bank, images=self.embedding(self.bank.images))

    def check(self, shape: EpisodeShape) -> None:
        self.bank.check(shape)

    def draw(self, keys: Keys, shape: EpisodeShape) -> Drawn:
        return self.bank.draw(keys, shape)

    def make(self, drawn: Drawn, shape: EpisodeShape) -> Episode:
        return self.features.make(drawn, shape)

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


class TaskDataset(Dataset[Any]):
    """The endless list of a split's tasks. Any index is valid; the loader decides which ones are visited."""

    seed: int

    def __getitems__(self, ids: Sequence[int]) -> Any:
        """The tasks `ids` as one meta-batch: a pytree with a leading task axis T."""
        raise NotImplementedError

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[Any]:
        """One meta-batch after the other."""
        return map(self.__getitems__, ids)


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
        return self.make(self.draw(ids))

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[Episode]:
        """One meta-batch after the other, drawn `DRAWN_AT_ONCE` episodes at a time and made one by one."""
        rest = list(ids)
        while rest:
            count = max(DRAWN_AT_ONCE // max(len(rest[0]), 1), 1)
            block, rest = rest[:count], rest[count:]
            leaves, structure = tree_flatten(self.draw([i for batch in block for i in batch]))
            for parts in zip(*(leaf.split([len(batch) for batch in block]) for leaf in leaves), strict=True):
                yield self.make(tree_unflatten(list(parts), structure))

    def draw(self, ids: Sequence[int]) -> tuple[Any, tuple[Tensor, ...]]:
        """What the source draws for the episodes `ids`; and the order of each support set, if there is one."""
        keys = episode_keys(self.seed, STREAM[self.split], ids)
        drawn = self.source.draw(keys, self.shape)
        if not self.support_as_stream:
            return drawn, ()
        size = self.shape.n_way * self.shape.k_shot
        order_TS = torch.from_numpy(choose(subkeys(keys, [ORDER])[..., 0], size, size))
        return drawn, (order_TS.to(tree_leaves(drawn)[0].device),)

    def make(self, drawn: tuple[Any, tuple[Tensor, ...]]) -> Episode:
        """The meta-batch that was drawn."""
        of_source, orders = drawn
        episode = self.source.make(of_source, self.shape)
        for order_TS in orders:
            rows_T1 = torch.arange(len(order_TS), device=order_TS.device)[:, None]
            episode = episode._replace(support=Batch(*(leaf[rows_T1, order_TS] for leaf in episode.support)))
        return episode

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
        # At least what is left of the epoch; the Trainer, which may cut epochs short, counts where it ends.
        batches = [list(self.ids_of_batch(b)) for b in range(self.position, self.position + self.batches_per_epoch)]
        for episode in self._read(batches):
            self.position += 1
            yield episode

    def _read(self, batches: list[list[int]]) -> Iterable[Any]:
        if not self.num_workers:
            return self.dataset.batches(batches)
        return DataLoader(
            self.dataset, batch_sampler=batches, collate_fn=_already_collated, num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_the_main_process,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def _already_collated(episode: Any) -> Any:
    """`EpisodeDataset.__getitems__` makes whole meta-batches, so nothing is left to collate."""
    return episode
