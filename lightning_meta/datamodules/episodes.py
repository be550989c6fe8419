"""Episodes as an indexed collection: episode `i` of a split is a pure function of (seed, split, i)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_meta.compat import tree_flatten, tree_leaves, tree_map, tree_unflatten
from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys
from lightning_meta.errors import ConfigError
from lightning_meta.signals import leave_signals_to_the_main_process

STREAM: dict[Split, int] = {"train": 0, "val": 1, "test": 2}  # which stream of random numbers a split draws from
DRAWN_AT_ONCE = 256  # episodes, in the main process
ORDER = 1000  # of a support set; the smaller indices of an episode's keys are its source's


def for_each_split(**counts: Sequence[int]) -> dict[Split, int]:
    """So many for training, validation and test as an option, given by its name, has. Raises `ConfigError`."""
    ((name, values),) = counts.items()
    if len(values) != len(STREAM) or min(values) < 1:
        raise ConfigError(f"{name}={list(values)} must be three numbers of at least 1: for train, val and test.")
    return dict(zip(STREAM, values, strict=True))


class Settings:
    """How tasks are made, of the user's choice; a result states its class and arguments."""

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if not isinstance(value, nn.Module)}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in given.items())})"


class TaskSource:
    """A distribution of tasks from which episodes are drawn by key. One writes `sample`, or `draw` and `make`."""

    def check(self, shape: EpisodeShape) -> None:
        """Raise `DataError` or `ConfigError` when episodes of this shape cannot be drawn."""

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """One episode for each key, stacked on a leading task axis T."""
        return self.make(self.draw(keys, shape), shape)

    def draw_episodes(self, seed: int, split: Split, ids: Sequence[int], shape: EpisodeShape) -> tuple[Keys, Any]:
        """The keys of the episodes `ids` of a split, and what is drawn for them."""
        keys = episode_keys(seed, STREAM[split], ids)
        return keys, self.draw(keys, shape)

    def draw(self, keys: Keys, shape: EpisodeShape) -> Any:
        """All that chance decides about one episode for each key: tensors with a leading task axis T.

        It is done for many meta-batches at once, so that what it costs to call many small operations is shared.
        """
        return self.sample(keys, shape)

    def make(self, drawn: Any, shape: EpisodeShape) -> Episode:
        """The episodes of a meta-batch that were drawn."""
        return drawn

    def unembedded(self) -> "TaskSource":
        """The source of the same episodes as they are in the data, where this one's hold features."""
        return self

    def to(self, device: torch.device) -> "TaskSource":
        """A source whose episodes are made on `device`."""
        raise NotImplementedError


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
        keys, drawn = self.source.draw_episodes(self.seed, self.split, ids, self.shape)
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
