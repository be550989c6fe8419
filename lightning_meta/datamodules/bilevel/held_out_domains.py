"""Trainings on one domain, judged on another; and new trainings on all seen domains, judged on unseen ones."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, choose, episode_keys, subkeys, uniform
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Steps, TrialDataset
from lightning_meta.datamodules.images.rotations import Rotations
from lightning_meta.errors import ConfigError, require_at_least

ROLES = 2001  # the stream of random numbers of the order of those that judge


class HeldOutDomains(BilevelDataModule):
    """Training i is on the seen domain i mod D, and what judges it in an outer update is of another one.

    Validation and test are retrained: on all seen domains, and judged on other images of these, or on the unseen ones.

    Args:
        domains: the images.
        batch_size: of an inner step, drawn with replacement.
        query_size: held-out images in an outer update, drawn without.
        **kwargs: of `BilevelDataModule`; `evaluate` is `retrained`.
    """

    def __init__(
        self, domains: Rotations, batch_size: int = 100, query_size: int = 100, unroll_steps: int = 200, **kwargs: Any
    ) -> None:
        super().__init__(unroll_steps=unroll_steps, evaluate="retrained", **kwargs)
        require_at_least(1, batch_size=batch_size, query_size=query_size)
        self.domains, self.batch_size, self.query_size = domains, batch_size, query_size
        self.name = domains.name

    def prepare_data(self) -> None:
        self.domains.images.prepare_data()

    def setup(self, stage: str) -> None:
        if hasattr(self, "n_classes"):
            return
        of_splits = self.domains.load(self.seed)
        self.n_classes = of_splits["train"].shape[1]
        # Images of a domain side by side: (D, E, C, H, W), and their labels (E,).
        self.images: dict[Split, Tensor] = {split: images.flatten(1, 2) for split, images in of_splits.items()}
        self.labels: dict[Split, Tensor] = {
            split: torch.arange(self.n_classes).repeat_interleave(images.shape[2])
            for split, images in of_splits.items()
        }
        if self.query_size > (there := len(self.labels["train"])):
            raise ConfigError(f"query_size={self.query_size}, but a domain has {there} images; lower it.")

    def read(self, split: Split, domains: Tensor, places: Tensor) -> Batch:
        """Images of a split, by domain and place in it, and their labels."""
        return Batch(self.images[split][domains, places].float().div_(255), self.labels[split][places])

    def drawn(self, keys: Keys, steps: Steps, domains: Tensor | None) -> tuple[Batch, Tensor]:
        """Batches of steps `(T, S)`, each training on its domain `(T,)`. None: each image of any."""
        count, there = self.images["train"].shape[:2]
        step_keys = subkeys(subkeys(keys, steps), range(2))
        draws_2TSB = (uniform(step_keys[..., part], self.batch_size) for part in range(2))
        places, others = (
            torch.from_numpy((draws * size).astype(np.int64))
            for draws, size in zip(draws_2TSB, (there, count), strict=True)
        )
        batch = self.read("train", others if domains is None else domains[:, None, None], places)
        return batch, torch.ones_like(batch.y, dtype=torch.bool)

    def steps(self, keys: Keys, steps: Steps) -> tuple[Batch, Tensor]:
        return self.drawn(keys, steps, None)

    def learned_from(self) -> Batch:
        return self._all("train")

    def all_held_out(self) -> Batch:
        """The same: each domain is held out from the others."""
        return self._all("train")

    def judges(self, split: Split) -> Batch:
        images, labels = self._all(split)
        key = episode_keys(self.seed, ROLES, [1])
        order = torch.from_numpy(subkeys(key, np.arange(len(labels)))[0].argsort(kind="stable"))
        return Batch(images[order], labels[order])

    def _all(self, split: Split) -> Batch:
        images = self.images[split]
        return Batch(images.flatten(0, 1).float().div_(255), self.labels[split].repeat(len(images)))

    def dataset(self, split: Split) -> TrialDataset:
        super().dataset(split)  # which checks the numbers of steps
        return DomainTrials(self, split) if split == "train" else TrialDataset(self, split)

    def facts(self, split: Split) -> dict[str, Any]:
        angles = self.domains.unseen if split == "test" else self.domains.angles
        mine = {"classes": self.n_classes, "domains": list(angles), "batch_size": self.batch_size}
        return {**super().facts(split), **mine, "judged_on": self.images[split].shape[:2].numel()}

    def describe(self, split: Split) -> str:
        return f"{self.domains.describe(split)}, {super().describe(split)}"


class DomainTrials(TrialDataset):
    """The trials of meta-training: each on one domain, judged on another, which its segment draws."""

    data: HeldOutDomains

    def domains_of(self, trainings: Steps) -> Tensor:
        return torch.from_numpy(trainings % len(self.data.images["train"]))

    def steps(self, trainings: Steps, keys: Keys, steps: Steps) -> tuple[Batch, Tensor]:
        return self.data.drawn(keys, steps, self.domains_of(trainings))

    def held_out(self, trainings: Steps, keys: Keys) -> Batch:
        count, there = self.data.images["train"].shape[:2]
        domain_key, place_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        others_T1 = torch.from_numpy(choose(domain_key, count - 1, 1))
        others_T1 += others_T1 >= self.domains_of(trainings)[:, None]
        places_TQ = torch.from_numpy(choose(place_key, there, self.data.query_size))
        return self.data.read("train", others_T1, places_TQ)
