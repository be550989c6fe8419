"""Episodes that differ in their numbers of classes and of examples, drawn with each episode by its key.

Triantafillou, Zhu, Dumoulin, Lamblin, Evci, Xu, Goroshin, Gelada, Swersky, Manzagol, Larochelle: "Meta-Dataset: A
Dataset of Datasets for Learning to Learn from Few Examples" (2020), arXiv:1903.03096, section 3.2, is
`MetaDatasetTasks`.

Deviations: classes are drawn uniformly; the paper follows the hierarchies of ImageNet and Omniglot where it has them.

A meta-batch of such episodes is a list, each episode a meta-batch of one (`core.Tasks`). They are not padded: what an
algorithm does with an episode then never depends on the others, no algorithm has to know of masks, and no work is spent
on padding. They are played one after the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import log
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import Keys, choose, choose_each, subkeys, uniform, whole
from lightning_meta.datamodules.class_bank import ClassBank, EmbeddedBank, quarter_turns
from lightning_meta.datamodules.episodes import ORDER, EpisodeDataset, Settings, TaskSource
from lightning_meta.errors import ConfigError, require_at_least

Counts = npt.NDArray[np.int64]
SHAPE = 4  # of an episode's keys, that of its numbers; the smaller ones are those of `ClassBank`


class VariableTasks(Settings, ABC):
    """A distribution of the numbers of an episode. Letters as everywhere: `T` episodes, `N` classes of the largest."""

    needed: EpisodeShape  # an episode that asks as much of a class as one must be able to give
    balanced: bool  # whether all classes of an episode have equally many support examples

    @abstractmethod
    def limits(self, size: Counts) -> tuple[EpisodeShape, EpisodeShape]:
        """The smallest and the largest numbers of an episode, where classes have `size` examples.

        Raises `ConfigError` where there are too few classes or examples.
        """

    @abstractmethod
    def ways(self, keys: Keys, classes: int) -> Counts:
        """How many classes each episode has `(T,)`, of so many."""

    @abstractmethod
    def counts(self, keys: Keys, size_TN: Counts) -> tuple[Counts, Counts]:
        """How many support and query examples are drawn of each class `(T, N)`, which has `size_TN` examples.

        A size of 0 is for no class, beyond the way of an episode: none are drawn.
        """


class UniformTasks(VariableTasks):
    """Way, shots and queries are uniform between two numbers, both included.

    Args:
        n_way: the least and the greatest number of classes.
        k_shot: likewise of support examples per class.
        n_query: likewise of query examples per class, the same for all classes of an episode.
        balanced: all classes of an episode have the same number of support examples. Otherwise each class draws its
            own.
    """

    def __init__(
        self,
        n_way: tuple[int, int] = (5, 20),
        k_shot: tuple[int, int] = (1, 5),
        n_query: tuple[int, int] = (10, 10),
        balanced: bool = False,
    ) -> None:
        for name, (low, high) in {"n_way": n_way, "k_shot": k_shot, "n_query": n_query}.items():
            require_at_least(1, **{f"{name}=[{low}, {high}]: {name}": low})
            if low > high:
                raise ConfigError(f"{name}=[{low}, {high}] goes from {low} to {high}; put the smaller number first.")
        self.n_way, self.k_shot, self.n_query, self.balanced = tuple(n_way), tuple(k_shot), tuple(n_query), balanced

    @property
    def needed(self) -> EpisodeShape:  # type: ignore[override]
        return EpisodeShape(self.n_way[0], self.k_shot[1], self.n_query[1])

    def limits(self, size: Counts) -> tuple[EpisodeShape, EpisodeShape]:
        smallest, largest = (EpisodeShape(self.n_way[i], self.k_shot[i], self.n_query[i]) for i in range(2))
        enough_classes(largest.n_way, len(size))
        if largest.k_shot + largest.n_query > (fewest := size.min(initial=2**31)):
            raise ConfigError(
                f"up to k_shot={largest.k_shot} + n_query={largest.n_query} examples are drawn of every class, but the "
                f"smallest class has {fewest}; lower them in data.variable."
            )
        return smallest, largest

    def ways(self, keys: Keys, classes: int) -> Counts:
        return whole(keys, *self.n_way)

    def counts(self, keys: Keys, size_TN: Counts) -> tuple[Counts, Counts]:
        query_key, shot_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        classes = np.zeros(1, np.int64) if self.balanced else np.arange(size_TN.shape[1])
        there_TN = size_TN > 0
        shots_TN = whole(subkeys(shot_key, classes), *self.k_shot)
        return shots_TN * there_TN, whole(query_key, *self.n_query)[:, None] * there_TN


class MetaDatasetTasks(VariableTasks):
    """The way is uniform; queries are balanced; support sets are of any size and follow the sizes of the classes.

    An episode of N classes with n examples each has q queries per class, as many as `max_query` and half of its
    smallest class allow. Its support set is drawn to have the sum of `ceil(beta min(max_shot, n - q))` examples, beta
    uniform, at most `max_support`. Every class gets one of them; the others are shared out in proportion to `n
    exp(a)`, with a log weight `a` of each class that is uniform between -`log 2` and `log 2`, and rounded down.

    Args:
        min_way: the least number of classes.
        max_way: the greatest. None: as many as the split has, 50 at most, as in the paper.
        max_query: query examples per class.
        max_support: examples of a support set.
        max_shot: what one class counts at most when the size of a support set is drawn. (A class may get more.)
    """

    balanced = False

    def __init__(
        self,
        min_way: int = 5,
        max_way: int | None = None,
        max_query: int = 10,
        max_support: int = 500,
        max_shot: int = 100,
    ) -> None:
        require_at_least(1, min_way=min_way, max_query=max_query, max_shot=max_shot)
        if max_way is not None and min_way > max_way:
            raise ConfigError(f"min_way={min_way} is more than max_way={max_way}; lower it.")
        self.min_way, self.max_way = min_way, max_way
        self.max_query, self.max_support, self.max_shot = max_query, max_support, max_shot

    @property
    def needed(self) -> EpisodeShape:  # type: ignore[override]
        return EpisodeShape(self.min_way, 1, 1)

    def limits(self, size: Counts) -> tuple[EpisodeShape, EpisodeShape]:
        enough_classes(max(self.min_way, self.max_way or 0), len(size))
        fewest, most = int(size.min(initial=2**31)), int(size.max(initial=0))
        if fewest < 2:
            raise ConfigError(
                f"an episode needs a support and a query example of every class, but the smallest class has {fewest}; "
                "add examples, or leave the class out."
            )
        if (way := self._most(len(size))) > self.max_support:
            raise ConfigError(
                f"max_support={self.max_support} has not one example for each of {way} classes; raise it, or lower "
                "max_way."
            )
        queries = [min(self.max_query, count // 2) for count in (fewest, most)]
        shots = min(most - queries[0], self.max_support - self.min_way + 1)
        return EpisodeShape(self.min_way, 1, queries[0]), EpisodeShape(way, shots, queries[1])

    def ways(self, keys: Keys, classes: int) -> Counts:
        return whole(keys, self.min_way, self._most(classes))

    def _most(self, classes: int) -> int:
        return self.max_way or min(classes, 50)

    def counts(self, keys: Keys, size_TN: Counts) -> tuple[Counts, Counts]:
        beta_key, weight_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        there_TN = size_TN > 0
        way_T = there_TN.sum(1)
        queries_T = np.minimum(self.max_query, np.where(there_TN, size_TN, 2**31).min(1) // 2)
        left_TN = (size_TN - queries_T[:, None]) * there_TN
        # ceil of a number from (0, 1], as one more than the floor of one from [0, 1)
        parts_TN = np.floor(uniform(beta_key, 1) * np.minimum(self.max_shot, left_TN)) + 1
        support_T = np.minimum((parts_TN * there_TN).sum(1), self.max_support)
        weights_TN = size_TN * np.exp(uniform(weight_key, size_TN.shape[1], -log(2), log(2)))
        shares_TN = weights_TN / weights_TN.sum(1, keepdims=True)
        shots_TN = np.floor(shares_TN * (support_T - way_T)[:, None]).astype(np.int64) + 1
        return np.minimum(shots_TN, left_TN), queries_T[:, None] * there_TN


def enough_classes(way: int, classes: int) -> None:
    if way > classes:
        raise ConfigError(
            f"episodes have up to {way} classes, but the split has {classes}; lower it in data.variable, or take a "
            "larger split."
        )


class Varied(NamedTuple):
    """Episodes of a `VariableBank`, as those of a `ClassBank` in `Drawn`, padded with -1.

    Attributes:
        rows: `(T, 1, N, M)`: of each class, support examples first.
        labels, turns: `(T, N)`.
        shots, queries: `(T, N)`, how many of each.
    """

    rows: Tensor
    labels: Tensor
    turns: Tensor
    shots: Tensor
    queries: Tensor


class VariableBank(TaskSource):
    """Episodes of variable numbers from a `ClassBank`, or from one with features."""

    def __init__(self, source: ClassBank | EmbeddedBank, tasks: VariableTasks) -> None:
        self.source, self.tasks = source, tasks

    @property
    def bank(self) -> ClassBank:
        return self.source.bank if isinstance(self.source, EmbeddedBank) else self.source

    def check(self, shape: EpisodeShape) -> None:
        """Whether episodes can be drawn; not of that shape, but of all that there may be."""
        self.tasks.limits(self.bank.size)
        if self.bank.labels == "fixed":
            raise ConfigError(
                "labels=fixed is for episodes of one way; set it to shuffled, or leave data.variable out."
            )
        if "mix" in self.bank.augmentation:
            raise ConfigError(
                "task_augmentation mixes classes of one way and shot; leave mix out of it, or leave data.variable out."
            )
        self.bank.check(self.tasks.needed)

    def draw(self, keys: Keys, shape: EpisodeShape) -> Varied:
        bank = self.bank
        class_key, example_key, turn_key, shape_key = np.moveaxis(subkeys(keys, [0, 1, 2, SHAPE]), -1, 0)
        way_key, count_key = np.moveaxis(subkeys(shape_key, range(2)), -1, 0)
        way_T = self.tasks.ways(way_key, len(bank.size))
        classes_TN = choose_each(class_key, len(bank.size), way_T)
        there_TN = classes_TN >= 0
        size_TN = np.where(there_TN, bank.size[classes_TN], 0)
        shots_TN, queries_TN = self.tasks.counts(count_key, size_TN)
        places_TN = np.arange(classes_TN.shape[1])
        chosen_TNM = choose_each(subkeys(example_key, places_TN), size_TN, shots_TN + queries_TN)
        rows_TNM = np.where(chosen_TNM >= 0, bank.first[classes_TN][..., None] + chosen_TNM, -1)
        labels_TN = classes_TN if bank.labels == "class" else np.where(there_TN, places_TN, -1)
        turns_TN = (subkeys(turn_key, places_TN) % np.uint64(4)).astype(np.int64)
        arrays = (rows_TNM[:, None], labels_TN, turns_TN, shots_TN, queries_TN)
        # On the CPU: sizes are read from them.
        return Varied(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def make(self, drawn: Varied, shape: EpisodeShape) -> list[Episode]:  # type: ignore[override]
        """The episodes, `(1, S, ...)` support and `(1, Q, ...)` query examples each, class by class."""
        rows_TNM = drawn.rows[:, 0]
        place_M = torch.arange(rows_TNM.shape[2])
        in_support_TNM = place_M < drawn.shots[..., None]
        in_query_TNM = ~in_support_TNM & (place_M < (drawn.shots + drawn.queries)[..., None])
        parts = [self._gather(drawn, kept_TNM) for kept_TNM in (in_support_TNM, in_query_TNM)]
        return [Episode(*episode) for episode in zip(*parts, strict=True)]

    def _gather(self, drawn: Varied, kept_TNM: Tensor) -> list[Batch]:
        rows_TNM, device = drawn.rows[:, 0], self.bank.inputs.device
        source = self.source.features if isinstance(self.source, EmbeddedBank) else self.source
        examples = source.take(rows_TNM[kept_TNM].to(device))
        if "rotate" in self.bank.augmentation:
            turns = drawn.turns[..., None].expand_as(rows_TNM)[kept_TNM].to(device)
            examples = quarter_turns(examples[:, None], turns)[:, 0]
        labels = drawn.labels[..., None].expand_as(rows_TNM)[kept_TNM].to(device)
        sizes = kept_TNM.flatten(1).sum(1).tolist()
        return [Batch(x[None], y[None]) for x, y in zip(examples.split(sizes), labels.split(sizes), strict=True)]

    def unembedded(self) -> "VariableBank":
        return VariableBank(self.bank, self.tasks) if isinstance(self.source, EmbeddedBank) else self

    def to(self, device: torch.device) -> "VariableBank":
        return VariableBank(self.source.to(device), self.tasks)


class VariableDataset(EpisodeDataset):
    """The episodes of a split whose numbers differ. A meta-batch is a list."""

    def draw(self, ids: Sequence[int]) -> tuple[Any, tuple[Tensor, ...]]:
        """What the source draws; and a key for the order of each support set, if there is one."""
        keys, drawn = self.source.draw_episodes(self.seed, self.split, ids, self.shape)
        return drawn, (torch.from_numpy(keys.astype(np.int64)),) if self.support_as_stream else ()

    def make(self, drawn: tuple[Any, tuple[Tensor, ...]]) -> list[Episode]:  # type: ignore[override]
        of_source, keys = drawn
        episodes: Any = self.source.make(of_source, self.shape)
        return [_shuffled(episode, key) for episode, key in zip(episodes, *keys, strict=True)] if keys else episodes

    def __getitem__(self, index: int) -> Episode:
        return tree_map(lambda leaf: leaf[0], self.__getitems__([index])[0])


def _shuffled(episode: Episode, key: Tensor) -> Episode:
    """With the support set in the order that belongs to the episode's key."""
    size = episode.support.y.shape[1]
    keys = subkeys(key.numpy().astype(np.uint64)[None], [ORDER])[..., 0]
    order_S = torch.from_numpy(choose(keys, size, size)[0]).to(episode.support.y.device)
    return episode._replace(support=Batch(*(leaf[:, order_S] for leaf in episode.support)))
