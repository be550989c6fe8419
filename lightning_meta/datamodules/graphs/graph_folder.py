"""A graph of your own from files of triples, in the layout of NELL-One."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.graphs.graph_data import GraphDataModule
from lightning_meta.datamodules.graphs.relation_bank import Ints, RelationBank, padded
from lightning_meta.errors import ConfigError, DataError

log = logging.getLogger(__name__)

Triple = tuple[str, str, str]
BACKGROUND = ("path_graph", "background.tsv")  # the names that a file may have; the first are those of NELL-One
TASKS: dict[Split, tuple[str, str]] = {
    "train": ("train_tasks.json", "train.tsv"),
    "val": ("dev_tasks.json", "val.tsv"),
    "test": ("test_tasks.json", "test.tsv"),
}
CANDIDATES = "rel2candidates.json"


class GraphFolder(GraphDataModule):
    """Relations of a graph in files: a background graph, and the pairs of the relations of each split.

    `background.tsv`, `train.tsv`, `val.tsv` and `test.tsv` have a triple on each line, `head<TAB>relation<TAB>tail`. Or
    a folder of NELL-One: `path_graph` in the same format, `train_tasks.json`, `dev_tasks.json` and `test_tasks.json`
    with lists of triples by relation, and `rel2candidates.json` with the candidates of each relation. Without the last,
    all tails of a split are candidates of its relations, so that there are no others than entities of the split.

    An edge of the background graph makes its tail a neighbour of its head, and its head one of its tail, by the inverse
    relation. Relations with fewer pairs than `k_shot + n_query`, or too few candidates that are wrong, are left out,
    and the log says how many.

    Args:
        root: the folder.
        n_way: must be 1.
        k_shot, n_query: pairs of a relation.
        vocabulary: how many ids of relations, their inverses and entities there may be, with padding.
        candidates: tails among which that of a query is.
        neighbours: how many of an entity's neighbours are read; of more, the first in the file.
        **kwargs: of `GraphDataModule`.
    """

    def __init__(
        self,
        root: str = "data/nell_one",
        n_way: int = 1,
        k_shot: int = 1,
        n_query: int = 10,
        vocabulary: int = 70_000,
        candidates: int = 50,
        neighbours: int = 30,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, candidates, neighbours, **kwargs)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Read the files. Raises `DataError` if one is missing or unreadable."""
        log.info("%s: %d entities, %d ids.", self.root, len(self.entities), self.ids)

    def file(self, names: tuple[str, str]) -> Path:
        """The first that there is of these."""
        for name in names:
            if (path := self.root / name).is_file():
                return path
        raise DataError(
            f"{self.root} has neither {names[0]} nor {names[1]}; a graph is background.tsv, train.tsv, val.tsv and "
            "test.tsv with head, relation and tail on each line, parted by tabs, or the files of NELL-One."
        )

    @cached_property
    def background(self) -> list[Triple]:
        return list(triples(self.file(BACKGROUND)))

    @cached_property
    def tasks(self) -> dict[Split, dict[str, list[Triple]]]:
        """The triples of each relation of each split, none twice."""
        found: dict[Split, dict[str, list[Triple]]] = {}
        for split, names in TASKS.items():
            by_relation: defaultdict[str, dict[Triple, None]] = defaultdict(dict)
            for triple in triples(self.file(names)):
                by_relation[triple[1]][triple] = None
            found[split] = {relation: list(own) for relation, own in by_relation.items()}
        seen = Counter(relation for relations in found.values() for relation in relations)
        if twice := sorted(relation for relation, count in seen.items() if count > 1):
            raise DataError(
                f"{self.root}: the relation {twice[0]!r} is in several splits; a relation belongs to one of them."
            )
        return found

    @cached_property
    def entities(self) -> dict[str, int]:
        """Their numbers, in the order in which the files name them."""
        of_tasks = (triple for relations in self.tasks.values() for own in relations.values() for triple in own)
        names = (name for triples in (self.background, of_tasks) for head, _, tail in triples for name in (head, tail))
        return {name: number for number, name in enumerate(dict.fromkeys(names))}

    @cached_property
    def relations(self) -> dict[str, int]:
        """Ids of the relations of the background graph; that of an inverse is the next."""
        names = dict.fromkeys(relation for _, relation, _ in self.background)
        return {name: 1 + 2 * number for number, name in enumerate(names)}

    @property
    def ids(self) -> int:
        """How many there are, with padding."""
        return 1 + 2 * len(self.relations) + len(self.entities)

    @cached_property
    def neighbour_table(self) -> Tensor:
        """Ids of relation and entity of each entity's neighbours, `(entities, M, 2)`."""
        if self.ids > self.vocabulary:
            raise ConfigError(
                f"{self.root} has {self.ids} ids of relations, their inverses and entities, but data.vocabulary="
                f"{self.vocabulary}; raise it."
            )
        first, own = 1 + 2 * len(self.relations), [dict[tuple[int, int], None]() for _ in self.entities]
        for head, relation, tail in self.background:
            h, r, t = self.entities[head], self.relations[relation], self.entities[tail]
            own[h][r, first + t] = None
            own[t][r + 1, first + h] = None
        return padded([np.array(list(found)).reshape(-1, 2) for found in own], self.neighbours)

    @cached_property
    def listed_candidates(self) -> dict[str, list[str]]:
        path = self.root / CANDIDATES
        return _json(path) if path.is_file() else {}

    def pool(self, split: Split, relation: str) -> Ints:
        """The entities that are candidates of a relation."""
        names = self.listed_candidates.get(relation)
        if names is None:
            names = [tail for own in self.tasks[split].values() for _, _, tail in own]
        return np.array(list(dict.fromkeys(self.entities[name] for name in names if name in self.entities)), np.int64)

    def load_source(self, split: Split) -> RelationBank:
        shape, kept = self.shapes[split], []
        for relation, own in self.tasks[split].items():
            pool, most = self.pool(split, relation), max(Counter(head for head, _, _ in own).values())
            if len(own) >= shape.k_shot + shape.n_query and len(pool) - most >= self.candidates - 1:
                pairs = np.array([[self.entities[head], self.entities[tail]] for head, _, tail in own])
                kept.append((pairs, pool))
        needs = f"{shape.k_shot + shape.n_query} pairs (k_shot + n_query) and {self.candidates} candidates"
        if not kept:
            raise ConfigError(f"no relation of {split} in {self.root} has {needs}; lower them.")
        if left_out := len(self.tasks[split]) - len(kept):
            log.info("%d of %d relations of %s have not %s.", left_out, len(self.tasks[split]), split, needs)
        relations, pools = zip(*kept, strict=True)
        return RelationBank.of(self.neighbour_table, relations, pools, self.candidates)

    def count_relations(self, split: Split) -> int:
        return len(self.tasks[split])


def triples(path: Path) -> Iterator[Triple]:
    """Head, relation and tail of each line, or of the lists of a JSON file. Raises `DataError`."""
    if path.suffix == ".json":
        for relation, own in _json(path).items():
            for triple in own:
                if not isinstance(triple, list) or len(triple) != 3 or triple[1] != relation:
                    raise DataError(f"{path}: {relation} has {triple}, which is not [head, {relation!r}, tail].")
                yield triple[0], triple[1], triple[2]
        return
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                parts = [part.strip() for part in line.rstrip("\n").split("\t")]
                if len(parts) != 3 or not all(parts):
                    raise DataError(
                        f"line {number} of {path} has {len(parts)} parts; it must be head, relation and tail, parted "
                        "by tabs."
                    )
                yield parts[0], parts[1], parts[2]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8; save it so.") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or not in UTF-8
        raise DataError(f"{path} is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must be an object with a list for each relation.")
    return content
