"""Made-up tables of a target and columns that cause it or are caused by it: what a tabular learner practises on.

After Hollmann, Müller, Eggensperger, Hutter: "TabPFN: A Transformer That Solves Small Tabular Classification Problems
in a Second" (2022), arXiv:2207.01848, section 4: a random network stands for how things cause one another, some of its
nodes are columns, one more is cut into classes, or is a number to be predicted.

Deviations: half of the tables with classes are clusters, a class each, and half of those with numbers are linear in
columns that are correlated, which the paper does not have; networks have two layers of one size; no column is a
category and none has gaps. Columns of real tables say much the same: how many independent
causes a table has is drawn by its logarithm, and so is the number of columns.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, normal, subkeys, uniform, whole
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError, require_at_least

Array = npt.NDArray[np.float64]
CAUSES = 8  # numbers that everything else in a network follows from, at most
APART = 4.0  # the largest distance between the centres of classes, by the deviation within one, about
OWN = 0.2  # deviation of what a column of clusters shares with no other
NOISE = 0.05, 2.0  # least and largest deviation of what columns do not tell of a number, where that of the rest is 1

Targets = Literal["classes", "numbers"]


@dataclass(frozen=True)
class TabularPriorSource(TaskSource):
    """Draws tables of up to `n_way` classes and up to `features` columns; columns that a table lacks are zero.

    Rows are as they come: classes are not balanced, and one of the query may be absent from the support.
    """

    features: int = 30
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way < 2:
            raise ConfigError(f"n_way={shape.n_way}, but a table has at least 2 classes.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, N * K, F)` and query `(T, N * Q, F)` rows, and their classes."""
        kind_key, size_key, table_key, name_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        way, support_rows = shape.n_way, shape.n_way * shape.k_shot
        rows = support_rows + way * shape.n_query
        columns_key, classes_key = np.moveaxis(subkeys(size_key, range(2)), -1, 0)
        columns_T = by_logarithm(columns_key, min(2, self.features), self.features)
        classes_T = whole(classes_key, 2, way)
        of_network = self._network(table_key, classes_T, rows)
        of_clusters = self._clusters(table_key, classes_T, columns_T, rows)
        network_T = uniform(kind_key, 1)[:, 0] < 0.5
        x_TMF = np.where(network_T[:, None, None], of_network[0], of_clusters[0])
        y_TM = np.where(network_T[:, None], of_network[1], of_clusters[1])
        x_TMF = x_TMF * (np.arange(self.features) < columns_T[:, None])[:, None]
        names_TN = subkeys(name_key, np.arange(way)) >> np.uint64(1)  # in a random order, first those that there are
        names_TN = np.where(np.arange(way) < classes_T[:, None], names_TN, np.iinfo(np.uint64).max)
        y_TM = np.take_along_axis(names_TN.argsort(1).argsort(1), y_TM, axis=1)
        x, y = torch.from_numpy(x_TMF).float().to(self.device), torch.from_numpy(y_TM).to(self.device)
        part = support_rows
        return Episode(support=Batch(x[:, :part], y[:, :part]), query=Batch(x[:, part:], y[:, part:]))

    def _network(self, keys: Keys, classes_T: npt.NDArray[np.int64], rows: int) -> tuple[Array, npt.NDArray[np.int64]]:
        """Columns are nodes of a random network; the classes are intervals of another node."""
        taken_TMF = self._nodes(keys, rows)
        rank_TM = (taken_TMF[:, :, 0].argsort(1).argsort(1) + 0.5) / rows
        cuts_TN = uniform(subkeys(keys, [3])[:, 0], int(classes_T.max()) - 1)
        counts_TN = np.arange(cuts_TN.shape[1]) < classes_T[:, None] - 1
        y_TM = ((rank_TM[:, :, None] > cuts_TN[:, None]) & counts_TN[:, None]).sum(2)
        return taken_TMF[:, :, 1:], y_TM

    def _nodes(self, keys: Keys, rows: int) -> Array:
        """Some nodes `(T, M, 1 + features)` of a random network, in a random order."""
        cause_key, first_key, second_key, node_key, count_key = np.moveaxis(subkeys(keys, [0, 1, 2, 4, 10]), -1, 0)
        tasks, units = len(keys), self.features + 1
        causes_TMC = normal(cause_key, rows * CAUSES).reshape(tasks, rows, CAUSES)
        first_TCU = normal(first_key, CAUSES * units).reshape(tasks, CAUSES, units)
        first_TCU = first_TCU * shares(by_logarithm(count_key, 1, CAUSES), CAUSES)[..., None]
        second_TUU = normal(second_key, units * units).reshape(tasks, units, units) / np.sqrt(units)
        first_TMU = np.tanh(2 * causes_TMC @ first_TCU)
        nodes_TMV = np.concatenate([first_TMU, np.tanh(3 * first_TMU @ second_TUU)], axis=2)
        order_TF = choose(node_key, 2 * units, self.features + 1)
        return np.take_along_axis(nodes_TMV, order_TF[:, None], axis=2)

    def _clusters(
        self, keys: Keys, classes_T: npt.NDArray[np.int64], columns_T: npt.NDArray[np.int64], rows: int
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        """A class is a normal distribution; its covariance is its own or, at even odds, that of all classes.

        Classes are as far apart in few columns as in many.
        """
        class_key, centre_key, shape_key, row_key, odds_key = np.moveaxis(subkeys(keys, range(5, 10)), -1, 0)
        count_key, own_key = np.moveaxis(subkeys(keys, range(11, 13)), -1, 0)
        tasks, way, size = len(keys), int(classes_T.max()), self.features
        y_TM = (uniform(class_key, rows) * classes_T[:, None]).astype(np.int64)
        distance_T, shared_T = uniform(odds_key, 2).T
        distance_T = APART * distance_T / np.sqrt(columns_T)
        centres_TNF = normal(centre_key, way * size).reshape(tasks, way, size) * distance_T[:, None, None]
        shapes_TNFF = normal(shape_key, way * size * size).reshape(tasks, way, size, size)
        shapes_TNFF = shapes_TNFF * shares(by_logarithm(count_key, 1, size), size)[:, None, :, None]
        shapes_TNFF = np.where((shared_T < 0.5)[:, None, None, None], shapes_TNFF[:, :1], shapes_TNFF)
        noise_TMF = normal(row_key, rows * size).reshape(tasks, rows, size)
        x_TMF = np.take_along_axis(centres_TNF, y_TM[:, :, None], axis=1)
        x_TMF = x_TMF + OWN * normal(own_key, rows * size).reshape(tasks, rows, size)
        for label in range(way):
            x_TMF = x_TMF + (y_TM == label)[..., None] * (noise_TMF @ shapes_TNFF[:, label])
        return x_TMF, y_TM

    def to(self, device: torch.device) -> "TabularPriorSource":
        return replace(self, device=device)


@dataclass(frozen=True)
class NumberPriorSource(TabularPriorSource):
    """Draws tables of up to `features` columns with a number in each row to be predicted, of deviation 1, about."""

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"targets are numbers, one task is one regression: n_way must be 1, not {shape.n_way}.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, K, F)` and query `(T, Q, F)` rows, and their targets `(T, K, 1)` and `(T, Q, 1)`."""
        kind_key, size_key, table_key, noise_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        columns_key, counts_key = np.moveaxis(subkeys(size_key, range(2)), -1, 0)
        level_key, error_key = np.moveaxis(subkeys(noise_key, range(2)), -1, 0)
        rows, k = shape.k_shot + shape.n_query, shape.k_shot
        columns_T = by_logarithm(columns_key, min(2, self.features), self.features)
        nodes_TMF = self._nodes(table_key, rows)
        correlated_TMF, _ = self._clusters(table_key, np.ones(len(keys), dtype=np.int64), columns_T, rows)
        weights_TF = self._weights(counts_key, columns_T)
        network_T1 = uniform(kind_key, 1) < 0.5
        x_TMF = np.where(network_T1[..., None], nodes_TMF[:, :, 1:], correlated_TMF)
        y_TM = np.where(network_T1, nodes_TMF[:, :, 0], (correlated_TMF @ weights_TF[..., None])[..., 0])
        y_TM = (y_TM - y_TM.mean(1, keepdims=True)) / y_TM.std(1, keepdims=True)
        noise_T1 = NOISE[0] * (NOISE[1] / NOISE[0]) ** uniform(level_key, 1)
        y_TM = (y_TM + noise_T1 * normal(error_key, rows)) / np.sqrt(1 + noise_T1**2)
        x_TMF = x_TMF * (np.arange(self.features) < columns_T[:, None])[:, None]
        x, y = (torch.from_numpy(part).float().to(self.device) for part in (x_TMF, y_TM[..., None]))
        return Episode(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:]))

    def _weights(self, keys: Keys, columns_T: npt.NDArray[np.int64]) -> Array:
        """Of columns `(T, features)` in a linear function: some have a weight, how many is drawn by the logarithm."""
        order_key, count_key, weight_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        there_TF = np.arange(self.features) < columns_T[:, None]
        rank_TF = np.where(there_TF, uniform(order_key, self.features), 2).argsort(1).argsort(1)
        counts_T = (columns_T + 1) ** uniform(count_key, 1)[:, 0]
        return np.where(rank_TF < counts_T.astype(np.int64)[:, None], normal(weight_key, self.features), 0)


def by_logarithm(keys: Keys, low: int, high: int) -> npt.NDArray[np.int64]:
    """Whole numbers from `low` to `high`, both included: n as likely as log(n + 1) - log(n)."""
    return (low * ((high + 1) / low) ** uniform(keys, 1)[..., 0]).astype(np.int64).clip(low, high)


def shares(counts_T: npt.NDArray[np.int64], most: int) -> Array:
    """Equal weights `(T, most)` of the first so many, zero for others; the sum of their squares is 1."""
    return (np.arange(most) < counts_T[:, None]) / np.sqrt(counts_T)[:, None]


class TabularPrior(EpisodicDataModule):
    """Made-up tables without end: `n_way * k_shot` support and `n_way * n_query` query rows, of 2 to `n_way` classes.

    Args:
        n_way: the most classes of a table; 1 where targets are numbers.
        k_shot, n_query: rows by the number of classes; those of a class may be more or fewer.
        features: the most columns of a table.
        targets: `classes` or `numbers`.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        n_way: int = 5,
        k_shot: int = 10,
        n_query: int = 10,
        features: int = 30,
        targets: Targets = "classes",
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, features=features)
        if targets not in get_args(Targets):
            raise ConfigError(f"targets={targets!r} must be one of {', '.join(get_args(Targets))}.")
        self.features, self.targets = features, targets

    def load_source(self, split: Split) -> TaskSource:
        return (TabularPriorSource if self.targets == "classes" else NumberPriorSource)(self.features)

    def balanced(self, split: Split) -> bool:
        return self.targets == "numbers"
