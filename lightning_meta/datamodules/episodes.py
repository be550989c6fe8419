"""Episodes as an indexed collection: episode `i` of a split is a pure function of (seed, split, i)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules.sampling import Keys, choose, episode_keys, subkeys
from lightning_meta.errors import ConfigError

Split = Literal["train", "val", "test"]
STREAM = {"train": 0, "val": 1, "test": 2}  # which stream of random numbers a split draws from


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
    """Labelled images held once in memory as uint8, gathered by index into whole meta-batches.

    Attributes:
        images: `(E, C, H, W)` uint8, the examples of a class side by side; 0 is background.
        first: `(classes,)` index of each class's first example.
        size: `(classes,)` number of examples of each class.
    """

    images: Tensor
    first: np.ndarray
    size: np.ndarray

    @classmethod
    def from_classes(cls, images: Tensor) -> "ClassBank":
        """Build from `(classes, examples, C, H, W)` uint8: every class with the same number of examples."""
        classes, examples = images.shape[:2]
        return cls(images.flatten(0, 1).contiguous(), np.arange(classes) * examples, np.full(classes, examples))

    def check(self, shape: EpisodeShape) -> None:
        n_classes, fewest = len(self.size), int(self.size.min(initial=2**31))
        if shape.n_way > n_classes:
            raise ConfigError(
                f"n_way={shape.n_way}, but the split has {n_classes} classes; lower n_way or take a larger split."
            )
        if shape.k_shot + shape.n_query > fewest:
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} examples are needed of every class, but the smallest "
                f"class has {fewest}; lower k_shot or n_query."
            )

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Draw `(T, N*K, C, H, W)` support and `(T, N*Q, C, H, W)` query images in [0, 1], class by class.

        The label of a class is its position in the episode's random order, so labels are permuted between episodes.
        """
        n_tasks, (n_way, k_shot, n_query) = len(keys), shape
        class_key, example_key = np.moveaxis(subkeys(keys, [0, 1]), -1, 0)
        classes_TN = choose(class_key, len(self.size), n_way)
        examples_TNM = choose(subkeys(example_key, np.arange(n_way)), self.size[classes_TN], k_shot + n_query)
        rows_TNM = torch.from_numpy(self.first[classes_TN][..., None] + examples_TNM).to(self.images.device)

        def gather(rows_TNK: Tensor) -> Batch:
            images = self.images.index_select(0, rows_TNK.flatten()).float().div_(255)
            labels = torch.arange(n_way, device=images.device).repeat_interleave(rows_TNK.shape[2])
            return Batch(
                x=images.view(n_tasks, labels.numel(), *images.shape[1:]), y=labels.expand(n_tasks, -1).contiguous()
            )

        return Episode(support=gather(rows_TNM[..., :k_shot]), query=gather(rows_TNM[..., k_shot:]))

    def to(self, device: torch.device) -> "ClassBank":
        return ClassBank(self.images.to(device), self.first, self.size)


class EpisodeDataset(Dataset[Episode]):
    """The endless list of a split's episodes. Any index is valid; the loader decides which ones are visited."""

    def __init__(self, source: TaskSource, shape: EpisodeShape, seed: int, split: Split) -> None:
        source.check(shape)
        self.source, self.shape, self.seed, self.split = source, shape, seed, split

    def __getitems__(self, ids: Sequence[int]) -> Episode:
        """The episodes `ids` as one meta-batch."""
        return self.source.sample(episode_keys(self.seed, STREAM[self.split], ids), self.shape)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index` alone, without a task axis."""
        return tree_map(lambda leaf: leaf[0], self.__getitems__([index]))


class EpisodeLoader:
    """Iterates over meta-batches by episode id and can be resumed in the middle of an epoch.

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
        dataset: EpisodeDataset,
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

    def __iter__(self) -> Iterator[Episode]:
        if not self.endless:
            self.position = 0
        end = (self.position // self.batches_per_epoch + 1) * self.batches_per_epoch
        batches = [list(self.ids_of_batch(b)) for b in range(self.position, end)]
        loader = DataLoader(
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
