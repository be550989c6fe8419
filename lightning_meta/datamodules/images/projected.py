"""Many tasks out of one data set: its images under random projections, its classes under permuted names.

As in Kirsch, Harrison, Sohl-Dickstein, Metz: "General-Purpose In-Context Learning by Meta-Learning Transformers"
(2022), arXiv:2212.04458. How many different tasks training has decides between a network that knows them by heart
and one that learns from the examples.

Deviations: pixels are averaged to a smaller image, and centred each by itself. Validation and test have images that
training has not.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, normal, subkeys, whole
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.errors import ConfigError, DataError, require_at_least

ROLES = 2002  # the stream of random numbers that says which image is of which split
TASKS = 2003  # that of the tasks of training


@dataclass(frozen=True)
class ProjectedSource(TaskSource):
    """Draws a task and examples for it, any of the images.

    Attributes:
        images: all of them as rows of numbers `(E, F)`, and their classes `(E,)`.
        classes: how many.
        task_keys: the tasks that there are, by their keys; None: every episode has a new one.
    """

    images: Batch
    classes: int
    task_keys: Keys | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, shape: EpisodeShape) -> None:
        needed = shape.n_way * (shape.k_shot + shape.n_query)
        if shape.n_way != self.classes:
            raise ConfigError(f"n_way={shape.n_way}, but the images are of {self.classes} classes, all in each task.")
        if needed > len(self.images.y):
            raise ConfigError(
                f"an episode of {shape} takes {needed} images, but there are {len(self.images.y)}; lower k_shot or "
                "n_query."
            )

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        """Support `(T, N * K, F)` and query `(T, N * Q, F)`, as they come: classes are not balanced."""
        task_key, row_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        support_rows = shape.n_way * shape.k_shot
        rows_TM = choose(row_key, len(self.images.y), support_rows + shape.n_way * shape.n_query)
        projection_TFF, names_TN = self.transforms(task_key)
        x_TMF = self.images.x[torch.from_numpy(rows_TM)] @ projection_TFF.mT
        y_TM = names_TN.gather(1, self.images.y[torch.from_numpy(rows_TM)])
        x_TMF, y_TM = x_TMF.to(self.device), y_TM.to(self.device)
        parts = (slice(support_rows), slice(support_rows, None))
        return Episode(*(Batch(x_TMF[:, part], y_TM[:, part]) for part in parts))

    def transforms(self, task_key: Keys) -> tuple[Tensor, Tensor]:
        """Of the episodes' tasks: projections `(T, F, F)` of independent normal numbers, and names `(T, N)`."""
        if self.task_keys is not None:
            task_key = self.task_keys[whole(task_key, 0, len(self.task_keys) - 1)]
        number_key, name_key = np.moveaxis(subkeys(task_key, range(2)), -1, 0)
        size = self.images.x.shape[1]
        numbers_TFF = normal(number_key, size * size).reshape(-1, size, size) / np.sqrt(size)
        names_TN = choose(name_key, self.classes, self.classes)
        return torch.from_numpy(numbers_TFF).to(self.images.x), torch.from_numpy(names_TN)

    def to(self, device: torch.device) -> "ProjectedSource":
        return replace(self, device=device)


class ProjectedImages(EpisodicDataModule):
    """A task is a random projection of all images and a random naming of their classes.

    Training plays `tasks` of them. Validation and test play new ones, with images that training does not have; which
    images those are is a function of the seed. An example is any image, so a class may be absent from a support set.

    Args:
        images: where they come from: the images of its training classes.
        tasks: of training, different ones. None: each episode has a new one.
        image_size: side to which images are averaged; an input has as many numbers as such an image.
        val_per_class, test_per_class: images of each class that training does not have.
        n_way: how many classes there are, those at even distances in the order of the data; all are in every task.
        k_shot, n_query: examples by the number of classes.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        images: ClassificationDataModule,
        tasks: int | None = None,
        image_size: int = 8,
        val_per_class: int = 100,
        test_per_class: int = 100,
        n_way: int = 10,
        k_shot: int = 5,
        n_query: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, image_size=image_size, val_per_class=val_per_class, test_per_class=test_per_class)
        require_at_least(1, tasks=tasks)
        self.images, self.tasks, self.image_size = images, tasks, image_size
        self.sizes = {"test": test_per_class, "val": val_per_class}
        self.name = f"projected {images.name}"

    def prepare_data(self) -> None:
        self.images.prepare_data()

    def load_source(self, split: Split) -> ProjectedSource:
        return ProjectedSource(self._images(split), self.n_way, self.trained_tasks() if split == "train" else None)

    def trained_tasks(self) -> Keys | None:
        """The keys of the tasks of training; None: there is no end of them."""
        return None if self.tasks is None else episode_keys(self.seed, TASKS, range(self.tasks))

    def _images(self, split: Split) -> Batch:
        """The images of a split, centred and scaled as those of training are."""
        bank = self.images.load_source("train").thinned(self.n_way)
        held_out = sum(self.sizes.values())
        if (fewest := int(bank.size.min())) <= held_out:
            raise DataError(
                f"a class of {self.images.name} has {fewest} images, but {held_out} of each are for validation and "
                "test; lower val_per_class or test_per_class."
            )
        keys = subkeys(episode_keys(self.seed, ROLES, [0]), np.arange(len(bank.size)))[0]
        rows: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
        for first, size, key in zip(bank.first, bank.size, keys, strict=True):
            order = first + subkeys(key, np.arange(size)).argsort(kind="stable")
            ends = np.cumsum([*self.sizes.values()])
            for role, of_class in zip((*self.sizes, "train"), np.split(order, ends), strict=True):
                rows[role].append(of_class)
        x, x_train = (self._averaged(bank.inputs[torch.from_numpy(np.concatenate(rows[role]))])
                      for role in (split, "train"))  # fmt: skip
        labels = torch.arange(self.n_way).repeat_interleave(torch.tensor([*map(len, rows[split])]))
        mean_F = x_train.mean(0)
        return Batch((x - mean_F) / (x_train - mean_F).square().mean().sqrt(), labels)

    def _averaged(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float().div(255), self.image_size).flatten(1)

    def balanced(self, split: Split) -> bool:
        return False

    def facts(self, split: Split) -> dict[str, Any]:
        return {**super().facts(split), "tasks": self.tasks, "image_size": self.image_size}
