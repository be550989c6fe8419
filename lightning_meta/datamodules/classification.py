"""Data sets made of classes: how classes get their labels, and how training tasks are made more diverse.

Fixed labels make tasks that are not mutually exclusive: one network can solve all training tasks without looking at
their support sets. They are the test bed for memorisation of Yin, Tucker, Zhou, Levine, Finn: "Meta-Learning without
Memorization" (2020), arXiv:1912.03820, and of Pan, Rajak, Shrivastava: "Meta-Regularization by Enforcing
Mutual-Exclusiveness" (2021), arXiv:2101.09819.

New classes for training come from rotation, as in Liu, Chao, Lin: "Task Augmentation by Rotating for Meta-Learning"
(2020), arXiv:2003.00804, and from mixing two classes, as in Ni, Goldblum, Sharaf, Kong, Goldstein: "Data Augmentation
for Meta-Learning" (2021), arXiv:2010.07092.

Deviations: the code of Pan et al. gives each class a random label, so some labels have more classes than others; here
their numbers differ by one at most. Two classes are mixed with equal weights, where mixup draws the weight at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.class_bank import ClassBank, Drawn, EmbeddedBank, Labels, TaskAugmentation
from lightning_meta.datamodules.class_split import SPLITS
from lightning_meta.datamodules.episodes import EpisodeDataset, TaskSource
from lightning_meta.datamodules.files import IMAGES, FileKind
from lightning_meta.datamodules.unsupervised import UnsupervisedTasks
from lightning_meta.datamodules.variable import VariableBank, VariableDataset, VariableTasks
from lightning_meta.errors import ConfigError

GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow


class ClassificationDataModule(EpisodicDataModule):
    """Episodes from a bank of labelled images. A data set writes `load_source` (and `prepare_data`).

    Args:
        variable: episodes of different numbers of classes and examples, such as `MetaDatasetTasks`, in place of
            `n_way`, `k_shot` and `n_query`. For algorithms that read the way from the episode (see
            `datamodules/variable.py`).
        variable_splits: in which splits; the others have episodes of one shape.
        unsupervised: makes the episodes of meta-training without their labels: `UMTRA`, `AAL` or `CACTUs` (see
            `datamodules/unsupervised.py`).
        labels: `shuffled`: the label of a class is its position in the episode's random order. `fixed`: each class of
            a split keeps one of the labels 0..n_way-1 in all episodes, and an episode draws one class for each label.
        task_augmentation: makes new classes, in meta-training only. `rotate`: each class drawn is turned by 0, 90, 180
            or 270 degrees, all its examples alike; not for data whose classes are rotations of each other already.
            `mix`: each class drawn is, with probability 1/2, mixed with a second class that no other class of the
            episode shares; its examples are the means of two images, one of each class. With both, classes are mixed,
            then turned. A new class has the label of the class drawn.
        train_classes: how many of the meta-training classes to use, taken at even distances in their order; all by
            default. The fewer they are, the sooner tasks with fixed labels are memorised.
        train_split: `trainval` trains on the classes of training and of validation together, as some papers do for
            their final figures. Validation stays what it is: it then measures on classes that were trained on.
        **kwargs: of `EpisodicDataModule`.
    """

    kind: FileKind = IMAGES  # of a user's files, which `prepare_image` takes

    def __init__(
        self,
        labels: Literal["shuffled", "fixed"] = "shuffled",
        task_augmentation: Sequence[TaskAugmentation] = (),
        train_classes: int | None = None,
        train_split: Literal["train", "trainval"] = "train",
        variable: VariableTasks | None = None,
        variable_splits: Sequence[Split] = SPLITS,
        unsupervised: UnsupervisedTasks | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if others := set(variable_splits) - set(SPLITS):
            raise ConfigError(f"variable_splits has {sorted(others)}; it may have train, val and test.")
        self.variable, self.variable_splits = variable, tuple(variable_splits)
        if variable:
            self.shapes |= dict.fromkeys(self.variable_splits, variable.needed)
        if labels not in ("shuffled", "fixed"):
            raise ConfigError(f"labels={labels!r} must be shuffled or fixed.")
        if unknown := set(task_augmentation) - {"rotate", "mix"}:
            raise ConfigError(f"task_augmentation has {sorted(unknown)}; it may have rotate and mix.")
        self.labels, self.task_augmentation, self.train_classes = labels, tuple(task_augmentation), train_classes
        if train_split not in ("train", "trainval"):
            raise ConfigError(f"train_split={train_split!r} must be train or trainval.")
        self.train_split = train_split
        self.unsupervised = unsupervised
        if unsupervised and (self.varies("train") or labels == "fixed" or task_augmentation):
            raise ConfigError(
                f"unsupervised={type(unsupervised).__name__} makes training episodes of one shape from images without "
                "labels; leave labels and task_augmentation out, and train out of variable_splits."
            )
        self.embedding: Callable[[Tensor], Tensor] | None = None

    def load_source(self, split: Split) -> ClassBank:
        """The classes of a split. Called once per split and process; raises `DataError`."""
        raise NotImplementedError

    def varies(self, split: Split) -> bool:
        return self.variable is not None and split in self.variable_splits

    def check_episodes(self, split: Split) -> None:
        if self.varies(split) or self._without_labels(split):
            self.dataset(split)  # which checks its source
        else:
            super().check_episodes(split)

    def extremes(self, split: Split) -> tuple[EpisodeShape, ...]:
        if self.variable is None or not self.varies(split):
            return super().extremes(split)
        return self.variable.limits(self.source(split).size)

    def balanced(self, split: Split) -> bool:
        return self.variable is None or not self.varies(split) or self.variable.balanced

    def facts(self, split: Split) -> dict[str, Any]:
        if not self.varies(split):
            return super().facts(split)
        smallest, largest = self.extremes(split)
        names = EpisodeShape._fields
        ranges = {name: _range(*ends) for name, *ends in zip(names, smallest, largest, strict=True)}
        return {**ranges, "variable": repr(self.variable)}

    def describe(self, split: Split) -> str:
        return str(EpisodeShape(*[*self.facts(split).values()][:3]))

    def load_split(self, split: Split) -> ClassBank:
        own = self.load_source(split)
        return own.joined(self.load_source("val")) if (split, self.train_split) == ("train", "trainval") else own

    def trained_on(self) -> str:
        classes = "" if self.train_split == "train" else " (training and validation classes)"
        unlabelled = f", without labels ({self.unsupervised!r})" if self.unsupervised else ""
        return super().trained_on() + classes + unlabelled

    def prepare_image(self, path: Path) -> Tensor:
        """An image file of a user's, made like the images of this data set: `(C, H, W)` uint8. For `predict`.

        Raises:
            DataError: the file cannot be read.
            ConfigError: the data set does not say how it is done, or has no images.
        """
        raise ConfigError(
            f"{self.name} does not say how an image of your own is made like its images; its class needs the method "
            "prepare_image."
        )

    def changes(self, paths: Sequence[Path], channels: int) -> list[str]:
        """What `prepare_image` does to a user's files that might surprise, in a line for each."""
        oblong = coloured = 0
        for path in paths:
            with Image.open(path) as image:
                # Quarter turns, which the orientation of a photograph may ask for, leave it as oblong as it is.
                oblong, coloured = oblong + (image.width != image.height), coloured + (image.mode not in GREY_MODES)
        lines = {
            f"not square, their sides cut off: {oblong} of {len(paths)}": oblong,
            f"in colour, made grey as in training: {coloured} of {len(paths)}": channels == 1 and coloured,
        }
        return [line for line, happened in lines.items() if happened]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.embedding = None  # the next algorithm may want ordinary episodes
        if stage == "fit" and "class_labels" in self.needs and self.unsupervised:
            raise ConfigError(
                "this algorithm learns to name the classes of meta-training, but data.unsupervised makes episodes "
                "without them; leave it out, or take an algorithm that learns from episodes, such as ProtoNet."
            )
        if stage == "fit" and "class_labels" in self.needs and self.task_augmentation:
            raise ConfigError(
                f"this algorithm learns to name the {self.n_classes('train')} classes of meta-training, but "
                f"task_augmentation={list(self.task_augmentation)} makes classes that have no name; set it to []."
            )

    def embed_by(self, embedding: Callable[[Tensor], Tensor]) -> None:
        """From now on, episodes hold the features of their examples.

        For algorithms with a frozen backbone, which call it in their `setup`. It holds until the datamodule's next
        `setup`. A split is embedded as a whole when its first episode is drawn.

        Args:
            embedding: from all examples of a split `(E, ...)`, as the bank holds them, to their features `(E, D)`.
        """
        if self.num_workers:
            raise ConfigError(
                f"features of a frozen backbone are computed in the main process, but num_workers={self.num_workers}; "
                "set data.num_workers to 0."
            )
        self.embedding = embedding

    def dataset(self, split: Split) -> EpisodeDataset:
        if self._without_labels(split):
            if self.embedding:
                raise ConfigError(
                    "the algorithm has a frozen backbone, whose features of labelled classes are computed once, but "
                    "data.unsupervised makes new images for each episode; train the backbone, or leave it out."
                )
            return self.dataset_of(EpisodeDataset, self._unsupervised_source, split)
        bank = self.source(split)
        source = self.varied(bank if self.embedding is None else EmbeddedBank(bank, self.embedding), split)
        kind = VariableDataset if self.varies(split) else EpisodeDataset
        return self.dataset_of(kind, source, split)

    def _without_labels(self, split: Split) -> bool:
        return self.unsupervised is not None and split == "train"

    @cached_property
    def _unsupervised_source(self) -> TaskSource:
        """Made of the images alone."""
        assert self.unsupervised is not None
        images = self.training_inputs()
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ConfigError(f"unsupervised is for images, but {self.name} has none; leave it out.")
        return self.unsupervised.source(images, self.shapes["train"])

    def varied(self, source: ClassBank | EmbeddedBank, split: Split) -> TaskSource:
        """The source, or that of variable episodes where a split has them."""
        return VariableBank(source, self.variable) if self.variable and self.varies(split) else source

    def n_classes(self, split: Split) -> int:
        """The number of classes of a split (after `setup`)."""
        return len(self.source(split).size)

    def class_names(self, split: Split) -> list[str] | None:
        """Of the classes of a split in the order of its source, for pictures. None: they have no names."""
        return None

    def names_in(self, split: Split, episode: int) -> dict[int, str] | None:
        """The names of an episode's classes by their labels; None where they have none."""
        names = self.class_names(split)
        if names is None or self._without_labels(split) or self.arrives(split):
            return None
        drawn: Drawn = self.dataset(split).draw([episode])[0]
        # The class of an example is the last that begins at its row or before.
        classes_N = self.source(split).first.searchsorted(drawn.rows[0, 0, :, 0].cpu().numpy(), "right") - 1
        labelled = zip(drawn.labels[0].tolist(), classes_N, strict=True)
        return {label: names[c] for label, c in labelled if label >= 0}

    def source(self, split: Split) -> ClassBank:
        """The classes of a split with the options that hold for it (after `setup`)."""
        bank = cast(ClassBank, self.sources[split])
        if split != "train":
            return replace(bank, labels="class" if "test_class_labels" in self.needs else self.labels)
        labels: Labels = "class" if "class_labels" in self.needs else self.labels
        return replace(self._thinned(bank), labels=labels, augmentation=self.task_augmentation)

    def training_inputs(self) -> Tensor:
        bank = cast(ClassBank, self.sources.get("train") or self.load_split("train"))
        return self._thinned(bank).examples()

    def _thinned(self, bank: ClassBank) -> ClassBank:
        """The classes of meta-training that are in use."""
        return bank if self.train_classes is None else bank.thinned(self.train_classes)


def _range(low: int, high: int) -> int | str:
    return low if low == high else f"{low}-{high}"
