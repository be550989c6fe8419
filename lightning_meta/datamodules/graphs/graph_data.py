"""What data of relations share."""

from typing import Any

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError


class GraphDataModule(EpisodicDataModule):
    """Episodes of a relation's pairs. Data sets write `load_source` and `count_relations`.

    Args:
        n_way: must be 1.
        k_shot, n_query: pairs of a relation.
        vocabulary: how many ids of relations and entities there are at most, with padding. On the command line the
            backbone follows it.
        candidates: tails among which that of a query is; more than 1.
        neighbours: how many of an entity's neighbours are read at most.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self, n_way: int, k_shot: int, n_query: int, vocabulary: int, candidates: int, neighbours: int, **kwargs: Any
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        if candidates < 2 or neighbours < 1:
            raise ConfigError(
                f"candidates={candidates} must be at least 2, and neighbours={neighbours} at least 1: among one "
                "candidate every answer is right."
            )
        self.vocabulary, self.candidates, self.neighbours = vocabulary, candidates, neighbours

    def count_relations(self, split: Split) -> int:
        """How many relations a split has."""
        raise NotImplementedError

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"relations": self.count_relations(split), "candidates": self.candidates}

    def describe(self, split: Split) -> str:
        shape = self.shapes[split]
        return (
            f"{shape.k_shot}-shot, {shape.n_query} heads with {self.candidates} candidates each; one of "
            f"{self.count_relations(split)} relations"
        )
