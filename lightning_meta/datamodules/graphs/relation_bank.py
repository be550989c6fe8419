"""Tasks that are relations of a graph: some of the pairs that a relation has, and others to be completed.

Shape letters: `M` pairs of an episode, or neighbours of an entity; `C` candidates of a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import Keys, choose, choose_each, subkeys
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.datamodules.task_bank import starts
from lightning_meta.errors import ConfigError

Ints = npt.NDArray[np.int64]


class DrawnRelations(NamedTuple):
    """Of T episodes, M pairs each: relations `(T,)`, pairs `(T, M, 2)`, candidates `(T, M, C)`, true ones `(T, M)`."""

    relation: Tensor
    pairs: Tensor
    candidates: Tensor
    answer: Tensor


@dataclass(frozen=True)
class RelationBank(TaskSource):
    """Draws a relation, `k_shot` of its pairs, and `n_query` others, each with candidates for its tail.

    An entity is known by its neighbours in a background graph. An example is a head with each of its candidates,
    `(C, 2, M, 2)`: of both entities the ids of relation and entity of their neighbours, padded. The target is the index
    of the one candidate that is a tail of the head.

    Attributes:
        neighbours: `(entities, M, 2)`.
        pairs: `(P, 2)` heads and tails by their rows in `neighbours`; those of a relation are side by side.
        size: `(relations,)` how many each has.
        pool: rows of the entities that are candidates, those of a relation side by side.
        pool_size: `(relations,)` how many each has.
        candidates: C.
    """

    neighbours: Tensor
    pairs: Ints
    size: Ints
    pool: Ints
    pool_size: Ints
    candidates: int

    @classmethod
    def of(
        cls, neighbours: Tensor, relations: Sequence[Ints], pools: Sequence[Ints], candidates: int
    ) -> "RelationBank":
        """Build from the pairs `(P, 2)` and the candidates of each relation."""
        sizes = [np.array([len(rows) for rows in parts]) for parts in (relations, pools)]
        return cls(neighbours, np.concatenate(relations), sizes[0], np.concatenate(pools), sizes[1], candidates)

    def check(self, shape: EpisodeShape) -> None:
        if shape.n_way != 1:
            raise ConfigError(f"a task is one relation: n_way must be 1, not {shape.n_way}.")
        needed, fewest = shape.k_shot + shape.n_query, int(self.size.min())
        if needed > fewest:
            raise ConfigError(
                f"k_shot={shape.k_shot} + n_query={shape.n_query} pairs are needed of every relation, but "
                f"{int((self.size < needed).sum())} of {len(self.size)} have fewer, the smallest {fewest}; lower "
                "k_shot or n_query."
            )
        false = self.pool_size - self._most_tails
        if self.candidates - 1 > false.min():
            raise ConfigError(
                f"candidates={self.candidates} are asked for, but of one relation only {int(false.min())} are sure to "
                f"be wrong; take at most {int(false.min()) + 1}."
            )

    @cached_property
    def _relation_of_pair(self) -> Ints:
        return np.repeat(np.arange(len(self.size)), self.size)

    @cached_property
    def _known(self) -> Ints:
        """Codes of all true triples, sorted."""
        return np.sort(self._codes(self._relation_of_pair, self.pairs[:, 0], self.pairs[:, 1]))

    @cached_property
    def _most_tails(self) -> Ints:
        """How many tails a head of each relation has at most, `(relations,)`."""
        heads, counts = np.unique(self._codes(self._relation_of_pair, self.pairs[:, 0], 0), return_counts=True)
        most = np.zeros(len(self.size), dtype=np.int64)
        np.maximum.at(most, heads // len(self.neighbours) ** 2, counts)
        return most

    def _codes(self, relation: Ints, head: Ints, tail: Ints | int) -> Ints:
        entities = len(self.neighbours)
        return (relation * entities + head) * entities + tail

    def holds(self, relation: Ints, head: Ints, tail: Ints) -> npt.NDArray[np.bool_]:
        """Whether the pairs of a relation have these."""
        codes = self._codes(relation, head, tail)
        place = np.searchsorted(self._known, codes).clip(max=len(self._known) - 1)
        return self._known[place] == codes

    def draw(self, keys: Keys, shape: EpisodeShape) -> DrawnRelations:
        relation_key, pair_key, wrong_key, place_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        relation_T = choose(relation_key, len(self.size), 1)[:, 0]
        chosen_TM = choose(pair_key, self.size[relation_T], shape.k_shot + shape.n_query)
        pairs_TM2 = self.pairs[starts(self.size)[relation_T][:, None] + chosen_TM]
        head_TM1, tail_TM1 = np.split(pairs_TM2, 2, axis=-1)
        # As many more as a head of the relation may have tails: then enough of them are wrong.
        sizes_T1 = (self.candidates - 1 + self._most_tails)[relation_T][:, None]
        query_key = subkeys(wrong_key, range(pairs_TM2.shape[1]))
        drawn_TMX = choose_each(query_key, self.pool_size[relation_T][:, None], sizes_T1)
        entity_TMX = self.pool[starts(self.pool_size)[relation_T][:, None, None] + drawn_TMX.clip(min=0)]
        out_TMX = self.holds(relation_T[:, None, None], head_TM1, entity_TMX) | (drawn_TMX < 0)
        order_TMX = out_TMX.argsort(-1, kind="stable")[..., : self.candidates - 1]
        wrong_TMX = np.take_along_axis(entity_TMX, order_TMX, -1)
        # The tail takes the place of one that is put at the end.
        answer_TM = choose(subkeys(place_key, range(pairs_TM2.shape[1])), self.candidates, 1)[..., 0]
        candidates_TMC = np.concatenate([wrong_TMX, tail_TM1], -1)
        last_TM1 = np.take_along_axis(candidates_TMC, answer_TM[..., None], -1)
        candidates_TMC[..., -1:] = last_TM1
        np.put_along_axis(candidates_TMC, answer_TM[..., None], tail_TM1, -1)
        device = self.neighbours.device
        return DrawnRelations(
            *(torch.from_numpy(v).to(device) for v in (relation_T, pairs_TM2, candidates_TMC, answer_TM))
        )

    def make(self, drawn: DrawnRelations, shape: EpisodeShape) -> Episode:
        """Support `(T, K, C, 2, M, 2)` with targets `(T, K)`, and query `(T, Q, C, 2, M, 2)` with `(T, Q)`."""
        k = shape.k_shot
        heads_TMC = drawn.pairs[..., :1].expand_as(drawn.candidates)
        x = self.neighbours[torch.stack([heads_TMC, drawn.candidates], -1)]
        return Episode(Batch(x[:, :k], drawn.answer[:, :k]), Batch(x[:, k:], drawn.answer[:, k:]))

    def to(self, device: torch.device) -> "RelationBank":
        return replace(self, neighbours=self.neighbours.to(device))


def padded(rows: Sequence[Ints], most: int) -> Tensor:
    """Neighbours of each entity, `(entities, most, 2)`, from `(neighbours, 2)` of each; what is over is left out."""
    table = np.full((len(rows), most, 2), PAD)
    for place, own in enumerate(rows):
        table[place, : len(own)] = own[:most]
    return torch.from_numpy(table)
