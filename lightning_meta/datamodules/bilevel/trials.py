"""Inner trainings as streams of trials: so many steps to take, and held-out examples to judge where they lead.

A trial is as frozen as an episode: what is drawn for step s of training i of a split is a pure function of (seed,
split, i, s).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import Split, Step
from lightning_meta.core.sampling import Keys, episode_keys, subkeys
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.episodes import STREAM, TaskDataset
from lightning_meta.errors import ConfigError, require_at_least

Steps = npt.NDArray[np.int64]
DICE = 2**32  # beside the steps' own, of which there are fewer: the index of the keys that algorithms draw from
ENDLESS = 2**40  # segments of a training that is never restarted: more than anybody trains


class Trial(NamedTuple):
    """S inner steps of T trainings. In evaluation S may be 0: then what a training has come to is judged.

    Attributes:
        start: `(T,)` inner steps taken before.
        key: `(T,)` int64, of the initial weights.
        support: what is learned from in each step, `(T, S, B, ...)`; labels may be wrong.
        right: `(T, S, B)` whether they are right. For what is logged: an algorithm that looked would cheat.
        query: held-out examples with right labels, `(T, Q, ...)`.
        dice: `(T, S)` int64, the key of what an algorithm draws at random in each step.
    """

    start: Tensor
    key: Tensor
    support: Batch
    right: Tensor
    query: Batch
    dice: Tensor

    @property
    def steps(self) -> Step:
        """What is learned from, with the dice: `(T, S, ...)`."""
        return Step(*self.support, self.dice)


class BilevelDataModule(TaskDataModule):
    """Streams of trials. A kind of data writes `steps`, `held_out` and `judges`.

    A training batch has `truncation` inner steps of each of `meta_batch_size` trainings; the next one goes on with the
    same trainings until they have had `unroll_steps`.

    Args:
        truncation: inner steps in an outer update.
        unroll_steps: of an inner training; then it is started anew. None: never.
        evaluate: `carried`: what the trainings have come to is judged, and a validation or test episode is a part of
            the examples, `val_episodes` and `test_episodes` of equal size. `retrained`: an episode is a training from
            its beginning, of `unroll_steps` under the outer variables as they are, judged on all the examples.
        **kwargs: of `TaskDataModule`; `meta_batch_size` counts trainings.
    """

    n_classes: int  # after `setup`

    def __init__(
        self,
        truncation: int = 1,
        unroll_steps: int | None = None,
        evaluate: Literal["carried", "retrained"] = "carried",
        meta_batch_size: int = 1,
        val_episodes: int = 10,
        test_episodes: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(meta_batch_size, val_episodes=val_episodes, test_episodes=test_episodes, **kwargs)
        require_at_least(1, truncation=truncation)
        if unroll_steps is not None:
            require_at_least(1, unroll_steps=unroll_steps)
        elif evaluate == "retrained":
            raise ConfigError(
                "evaluate=retrained trains from the beginning, but unroll_steps=null does not say how long; set it."
            )
        self.truncation, self.unroll_steps, self.evaluate = truncation, unroll_steps, evaluate

    def steps(self, keys: Keys, steps: Steps) -> tuple[Batch, Tensor]:
        """What T trainings learn from in steps `(T, S)`: `(T, S, B, ...)`, and which labels are right `(T, S, B)`."""
        raise NotImplementedError

    def held_out(self, keys: Keys) -> Batch:
        """Held-out examples for each of T segments of trainings, `(T, Q, ...)`."""
        raise NotImplementedError

    def judges(self, split: Split) -> Batch:
        """All examples of validation or test `(E, ...)`, in a random order that is always the same."""
        raise NotImplementedError

    def learned_from(self) -> Batch:
        """All examples to learn from `(E, ...)`, with the labels that are given."""
        raise NotImplementedError

    def all_held_out(self) -> Batch:
        """All held-out examples `(E, ...)`."""
        raise NotImplementedError

    def first_of_each_class(self, per_class: int, shape: Sequence[int]) -> Tensor:
        """The first images of each class that there are to learn from, `(classes * per_class, *shape)`."""
        images, labels = self.learned_from()
        found = [images[labels == c][:per_class] for c in range(self.n_classes)]
        if short := [c for c, of_class in enumerate(found) if len(of_class) < per_class]:
            raise ConfigError(
                f"per_class={per_class}, but class {short[0]} of {self.name} has {len(found[short[0]])} images to "
                "learn from; raise data.support_per_class."
            )
        if images.shape[1:] != torch.Size(shape):
            raise ConfigError(
                f"in_shape={[*shape]}, but images of {self.name} are {[*images.shape[1:]]}; set model.in_shape to "
                f"{[*images.shape[1:]]}."
            )
        return torch.cat(found)

    @property
    def starts_anew(self) -> bool:
        """Whether nothing is left of a training after its outer update: neither is it gone on with, nor judged."""
        return self.segments == 1 and self.evaluate == "retrained"

    @property
    def segments(self) -> int:
        """Of a training: outer updates until it is started anew."""
        return ENDLESS if self.unroll_steps is None else self.unroll_steps // self.truncation

    def dataset(self, split: Split) -> "TrialDataset":
        if split == "train" and self.unroll_steps and self.unroll_steps % self.truncation:
            raise ConfigError(
                f"unroll_steps={self.unroll_steps} is not a multiple of truncation={self.truncation}; "
                f"take {max(self.unroll_steps // self.truncation, 1) * self.truncation} steps, say."
            )
        if split != "train" and self.evaluate == "carried":
            parts, examples = {"val": self.val_episodes, "test": self.test_episodes}[split], len(self.judges(split).y)
            if examples % parts:
                raise ConfigError(
                    f"the {examples} {split} examples cannot be judged in {parts} equal parts; set {split}_episodes to "
                    f"{max(n for n in range(1, min(parts, examples) + 1) if examples % n == 0)}, say."
                )
        return TrialDataset(self, split)

    def train_ids(self, batch: int, rank: int, share: int) -> Sequence[int]:
        """Segment k of training i has the id `i * segments + k`."""
        restarts, segment = divmod(batch, self.segments)
        return [i * self.segments + segment for i in super().train_ids(restarts, rank, share)]

    def facts(self, split: Split) -> dict[str, Any]:
        return {"inner_steps": self.unroll_steps if self.evaluate == "retrained" else None}

    def describe(self, split: Split) -> str:
        return f"{self.unroll_steps} inner steps" if self.evaluate == "retrained" else "judged as it was trained"


class TrialDataset(TaskDataset):
    """The trials of a split."""

    def __init__(self, data: BilevelDataModule, split: Split) -> None:
        self.data, self.split, self.seed = data, split, data.seed

    def __getitems__(self, ids: Sequence[int]) -> Trial:
        data = self.data
        numbers = np.asarray(ids, dtype=np.int64)
        if self.split == "train":
            trainings, segments = np.divmod(numbers, data.segments)
            first, length = segments * data.truncation, data.truncation
        else:
            trainings, first = numbers, np.zeros_like(numbers)
            length = data.unroll_steps or 0 if data.evaluate == "retrained" else 0
        stream = STREAM[self.split]
        # Training keys and those of their segments are two streams of one split.
        keys = episode_keys(self.seed, stream, trainings)
        steps = first[:, None] + np.arange(length)
        support, right = self.steps(trainings, keys, steps)
        dice = torch.from_numpy(subkeys(subkeys(keys, [DICE])[:, 0], steps).view(np.int64))
        segment_keys = episode_keys(self.seed, stream + len(STREAM), numbers)
        query = self.held_out(trainings, segment_keys) if self.split == "train" else None
        start, of_weights = torch.from_numpy(first), torch.from_numpy(keys.view(np.int64))
        return Trial(start, of_weights, support, right, query or self._judges(ids), dice)

    def steps(self, trainings: Steps, keys: Keys, steps: Steps) -> tuple[Batch, Tensor]:
        """What is learned from in steps `(T, S)` of the trainings `(T,)`."""
        return self.data.steps(keys, steps)

    def held_out(self, trainings: Steps, keys: Keys) -> Batch:
        """What judges a segment of each of the trainings `(T,)` in meta-training."""
        return self.data.held_out(keys)

    def _judges(self, ids: Sequence[int]) -> Batch:
        """All examples of the split for each trial, or its part of them."""
        whole = self.data.judges(self.split)
        if self.data.evaluate == "retrained":
            return Batch(*(part.expand(len(ids), *part.shape) for part in whole))
        parts = {"val": self.data.val_episodes, "test": self.data.test_episodes}[self.split]
        return Batch(*(part.unflatten(0, (parts, -1))[list(ids)] for part in whole))
