"""Episodes of domains: learn on some, judge on another that the episode has not seen.

Labels are the classes themselves, the same in every episode: what is to be generalised over is the domain.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import Keys, choose, subkeys
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.datamodules.images.rotations import Rotations
from lightning_meta.errors import ConfigError


@dataclass(frozen=True)
class DomainSource(TaskSource):
    """Draws episodes of all classes.

    Attributes:
        support, query: `(D, N, M, C, H, W)` uint8.
        apart: the query set is of one domain, drawn for the episode, and the support set of the others; `support` and
            `query` are the same. Otherwise each takes its domains in turn.
    """

    support: Tensor
    query: Tensor
    apart: bool

    def check(self, shape: EpisodeShape) -> None:
        classes = self.query.shape[1]
        if shape.n_way != classes:
            raise ConfigError(
                f"n_way={shape.n_way}, but an episode of domains has all {classes} classes; set n_way to {classes}."
            )
        for name, size, there in (
            ("k_shot", shape.k_shot, self.support.shape[2]), ("n_query", shape.n_query, self.query.shape[2]),
        ):  # fmt: skip
            if size > there:
                raise ConfigError(f"{name}={size}, but a class has {there} images in a domain; lower it.")

    def sample(self, keys: Keys, shape: EpisodeShape) -> Episode:
        order_key, support_key, query_key = np.moveaxis(subkeys(keys, range(3)), -1, 0)
        domains = self.support.shape[0]
        order_TD = choose(order_key, domains, domains)
        if self.apart:
            return Episode(
                self._gather(self.support, order_TD[:, 1:], support_key, shape.k_shot),
                self._gather(self.query, order_TD[:, :1], query_key, shape.n_query),
            )
        all_TD = np.tile(np.arange(self.query.shape[0]), (len(keys), 1))
        return Episode(
            self._gather(self.support, order_TD, support_key, shape.k_shot),
            self._gather(self.query, all_TD, query_key, shape.n_query),
        )

    def _gather(self, images: Tensor, domains_TD: np.ndarray, keys: Keys, per_class: int) -> Batch:
        """`(T, N * per_class, ...)`, class by class; the images of a class take the domains in turn."""
        classes, there = images.shape[1:3]
        device = images.device
        picks_TNK = torch.from_numpy(choose(subkeys(keys, range(classes)), there, per_class)).to(device)
        turn_TK = torch.from_numpy(domains_TD[:, np.arange(per_class) % domains_TD.shape[1]]).to(device)
        labels_N = torch.arange(classes, device=device)
        drawn = images[turn_TK[:, None], labels_N[:, None], picks_TNK]
        return Batch(drawn.flatten(1, 2).float().div_(255), labels_N.repeat_interleave(per_class).repeat(len(keys), 1))

    def to(self, device: torch.device) -> "DomainSource":
        return replace(self, support=self.support.to(device), query=self.query.to(device))


class Domains(EpisodicDataModule):
    """Episodes of all classes: in training, a support set of all seen domains but one, and a query set of that one.

    In validation and test the support set is of all seen domains, and the query set of other images of them, or of the
    unseen domains. A test episode is a draw from their images; an image can be in several.

    Args:
        domains: the images.
        **kwargs: of `EpisodicDataModule`; `n_way` is the number of classes.
    """

    def __init__(self, domains: Rotations, n_way: int = 10, k_shot: int = 10, n_query: int = 10, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        self.domains, self.name = domains, domains.name
        self._images: dict[Split, Tensor] = {}

    def prepare_data(self) -> None:
        self.domains.images.prepare_data()

    def load_source(self, split: Split) -> DomainSource:
        self._images = self._images or self.domains.load(self.seed)
        return DomainSource(self._images["train"], self._images[split], apart=split == "train")

    def facts(self, split: Split) -> dict[str, Any]:
        angles = self.domains.unseen if split == "test" else self.domains.angles
        return {**super().facts(split), "domains": list(angles)}

    def describe(self, split: Split) -> str:
        return f"{super().describe(split)}, {self.domains.describe(split)}"
