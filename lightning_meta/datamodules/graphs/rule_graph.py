"""A made-up graph whose relations follow from rules: what a pair has to do with one another is in its neighbours.

The problem is that of Xiong, Yu, Chang, Guo, Wang: "One-Shot Relational Learning for Knowledge Graphs" (2018), EMNLP,
arXiv:1808.09040: a relation is known by one pair or a few, and entities by their neighbours in a background graph.

Entities have a type and a value of each of some properties: relations of the background graph, from the entity to what
stands for the type or the value. A relation is a rule: the tail is of a certain type, and shares the value of a certain
property with the head: "a river in the same country". The type is seen in any tail; which property counts is
seen only where head and tail are compared. Rules of training, validation and test are different ones.
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import choose, choose_each, episode_keys, subkeys, whole
from lightning_meta.datamodules.graphs.graph_data import GraphDataModule
from lightning_meta.datamodules.graphs.relation_bank import DrawnRelations, Ints, RelationBank, padded
from lightning_meta.errors import ConfigError, require_at_least

GRAPH = 4000  # the stream of random numbers of the graph, beside those of episodes
MOST_ACQUAINTANCES = 2  # neighbours that have nothing to do with any rule
SHARES = (0.6, 0.15)  # of the rules, for training and validation


class Graph(NamedTuple):
    """Of each entity the type `(E,)`, the values of its properties `(E, J)`, and its neighbours, ids `(E, M, 2)`."""

    kind: Ints
    values: Ints
    neighbours: Any


class RuleGraph(GraphDataModule):
    """A made-up graph: `k_shot` pairs of a relation that follows a rule, and `n_query` heads whose tails are asked for.

    Args:
        n_way: must be 1.
        k_shot, n_query: pairs of a relation.
        vocabulary: ids of padding, relations of the background graph, types, values, and entities, which are the rest.
        candidates: tails among which that of a query is.
        types: of entities.
        properties: of an entity; there are `types * properties` rules.
        values: that a property may have.
        neighbours: how many are read at most; none is left out by the default.
        **kwargs: of `GraphDataModule`.
    """

    def __init__(
        self,
        n_way: int = 1,
        k_shot: int = 1,
        n_query: int = 10,
        vocabulary: int = 600,
        candidates: int = 50,
        types: int = 16,
        properties: int = 4,
        values: int = 4,
        neighbours: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, candidates, neighbours, **kwargs)
        require_at_least(2, types=types, properties=properties, values=values)
        self.types, self.properties, self.values = types, properties, values
        self.first_type = properties + 3  # after padding, the type, properties and acquaintance
        self.first_value = self.first_type + types
        self.first_entity = self.first_value + properties * values
        self.entities, least = vocabulary - self.first_entity, 8 * types
        if self.entities < least:
            raise ConfigError(
                f"vocabulary={vocabulary} leaves {self.entities} entities beside {self.first_entity} other ids; take "
                f"at least {self.first_entity + least}, eight of each type."
            )

    @cached_property
    def graph(self) -> Graph:
        """A function of the seed."""
        keys = episode_keys(self.seed, GRAPH, range(self.entities))
        value_key, count_key, whom_key, order_key = np.moveaxis(subkeys(keys, range(4)), -1, 0)
        kind_E = np.arange(self.entities) % self.types
        values_EJ = choose(subkeys(value_key, range(self.properties)), self.values, 1)[..., 0]
        property_J = np.arange(self.properties)
        types_E12 = np.stack([np.ones_like(kind_E), self.first_type + kind_E], -1)[:, None]
        values_EJ2 = np.stack(
            [
                np.broadcast_to(2 + property_J, values_EJ.shape),
                self.first_value + property_J * self.values + values_EJ,
            ],
            -1,
        )
        known_EX = choose_each(whom_key, self.entities, whole(count_key, 0, MOST_ACQUAINTANCES))
        rows = []
        for entity, known in enumerate(known_EX):
            others = known[known >= 0]
            acquaintances = np.stack([np.full_like(others, self.properties + 2), self.first_entity + others], -1)
            own = np.concatenate([types_E12[entity], values_EJ2[entity], acquaintances])
            rows.append(own[choose(order_key[entity], len(own), len(own))])
        return Graph(kind_E, values_EJ, padded(rows, self.neighbours))

    @cached_property
    def rules(self) -> dict[Split, Ints]:
        """Type and property of the rules of each split, `(rules, 2)`."""
        count = self.types * self.properties
        order = choose(episode_keys(self.seed, GRAPH, [self.entities])[0], count, count)
        ends = np.cumsum([max(int(share * count), 1) for share in SHARES])
        train, val, test = np.split(np.stack(np.divmod(order, self.properties), -1), ends)
        return {"train": train, "val": val, "test": test}

    def pairs(self, kind: int, shared: int) -> Ints:
        """All pairs `(P, 2)` of the relation with this rule."""
        own_E = self.graph.values[:, shared]
        holds_EE = (own_E[:, None] == own_E) & (self.graph.kind == kind)
        np.fill_diagonal(holds_EE, False)
        return np.argwhere(holds_EE)

    def load_source(self, split: Split) -> RelationBank:
        relations = [self.pairs(kind, shared) for kind, shared in self.rules[split].tolist()]
        pools = [np.arange(self.entities)] * len(relations)
        return RelationBank.of(self.graph.neighbours, relations, pools, self.candidates)

    def count_relations(self, split: Split) -> int:
        return len(self.rules[split])

    def posterior(self, drawn: DrawnRelations, shape: EpisodeShape) -> Any:
        """The probability of each candidate of the queries `(T, Q, C)`, for one who knows the graph and the rules.

        By Bayes' rule over all rules, for one query at a time. A rule is possible if one candidate alone follows it, of
        support pairs the true one; it is the likelier the fewer pairs and wrong candidates there are that what was seen
        could be drawn from.
        """
        k, (kind_E, values_EJ, _) = shape.k_shot, self.graph
        head_TM1, candidates_TMC = drawn.pairs.numpy()[..., :1], drawn.candidates.numpy()
        is_answer_TKC = drawn.answer.numpy()[:, :k, None] == np.arange(self.candidates)
        log_TQC = np.full((self.types * self.properties, *candidates_TMC[:, k:].shape), -np.inf)
        for rule in range(len(log_TQC)):
            kind, shared = divmod(rule, self.properties)
            own_E, pairs_P2 = values_EJ[:, shared], self.pairs(kind, shared)
            follow_TMC = (own_E[head_TM1] == own_E[candidates_TMC]) & (kind_E == kind)[candidates_TMC]
            follow_TMC &= candidates_TMC != head_TM1
            possible_T = (follow_TMC[:, :k] == is_answer_TKC).all((1, 2))
            possible_TQ1 = possible_T[:, None, None] & (follow_TMC[:, k:].sum(-1, keepdims=True) == 1)
            wrong_E = self.entities - np.bincount(pairs_P2[:, 0], minlength=self.entities)
            log_sets_TM1 = log_choose(wrong_E, self.candidates - 1)[head_TM1]
            log_sets_TQ1 = log_sets_TM1[:, :k].sum(1, keepdims=True) + log_sets_TM1[:, k:]
            log_pairs = np.log(len(pairs_P2) - np.arange(k + 1)).sum()
            log_TQC[rule] = np.where(possible_TQ1 & follow_TMC[:, k:], -log_pairs - log_sets_TQ1, -np.inf)
        weight_TQC = np.exp(log_TQC - log_TQC.max((0, -1), keepdims=True)).sum(0)
        return weight_TQC / weight_TQC.sum(-1, keepdims=True)


def log_choose(number: Ints, size: int) -> Any:
    """Logarithm of how many sets of `size` there are of so many."""
    n, k = torch.from_numpy(number).double(), torch.tensor(float(size)).double()
    return ((n + 1).lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma()).numpy()
