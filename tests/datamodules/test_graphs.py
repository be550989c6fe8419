"""Relations of made-up graphs and of files: what is a true tail, what is not, and how well one can do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import GraphFolder, RuleGraph
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.metrics import EpisodicHits1, EpisodicHits5, EpisodicHits10, EpisodicMRR, ranks
from tests.conftest import rule_graph

SHAPE = EpisodeShape(1, 2, 5)


def test_one_candidate_follows_the_rule_and_no_other() -> None:
    """Rules are read off the neighbours of the episode, not off the tables that made them."""
    data = RuleGraph()
    source, keys = data.load_source("train"), episode_keys(0, 0, range(40))
    drawn = source.draw(keys, SHAPE)
    tasks = source.make(drawn, SHAPE)
    assert tasks.support.x.shape == (40, 2, 50, 2, 8, 2) and tasks.query.x.shape == (40, 5, 50, 2, 8, 2)

    def edges(entity: torch.Tensor) -> dict[int, int]:
        return {relation: other for relation, other in entity.tolist() if 0 < relation < 6}

    for t, relation in enumerate(drawn.relation.tolist()):
        kind, shared = data.rules["train"][relation].tolist()
        for place, answer in enumerate([*tasks.support.y[t].tolist(), *tasks.query.y[t].tolist()]):
            examples = tasks.support.x[t, place] if place < 2 else tasks.query.x[t, place - 2]
            follow = [
                edges(tail)[1] == data.first_type + kind and edges(head)[2 + shared] == edges(tail)[2 + shared]
                for head, tail in examples
            ]
            own = (drawn.candidates[t, place] == drawn.pairs[t, place, 0]).tolist()
            assert [c for c in range(50) if follow[c] and not own[c]] == [answer]
    assert len(drawn.answer.unique()) > 40, "the true one is anywhere"
    assert all(len(row.unique()) == 50 for row in drawn.candidates.flatten(0, 1))


def test_neighbours_are_the_graphs_and_rules_are_in_one_split() -> None:
    data = RuleGraph()
    kinds, values, table = data.graph
    sizes = set()
    for entity in range(0, data.entities, 7):
        found = [tuple(edge) for edge in table[entity].tolist() if edge[1]]
        sizes.add(len(found))
        firsts = data.first_value + 4 * np.arange(4) + values[entity]
        assert {(1, data.first_type + kinds[entity]), *zip(range(2, 6), firsts, strict=True)} <= {*found}
        assert all(r == 6 and other >= data.first_entity for r, other in found if r > 5)
    assert sizes == {5, 6, 7}
    together = np.concatenate([*data.rules.values()])
    assert len(np.unique(together, axis=0)) == len(together) == 64
    assert [data.count_relations(split) for split in ("train", "val", "test")] == [38, 9, 17]
    assert table.max() < 600


def test_who_knows_the_rules_is_best_and_right_more_often_the_more_pairs_there_are() -> None:
    data = RuleGraph()
    source, keys, found = data.load_source("test"), episode_keys(0, 2, range(100)), []
    for k_shot in (1, 5):
        shape = EpisodeShape(1, k_shot, 10)
        drawn = source.draw(keys, shape)
        probability = torch.from_numpy(data.posterior(drawn, shape))
        torch.testing.assert_close(probability.sum(-1), torch.ones(100, 10, dtype=torch.float64))
        stated, right = probability.amax(-1), EpisodicHits1.per_episode(probability, drawn.answer[:, k_shot:])
        assert right.mean().item() == pytest.approx(stated.mean().item(), abs=0.03), "it is as sure as it is right"
        found.append(right.mean().item())
    assert 0.5 < found[0] < found[1] and found[1] > 0.97


def test_episodes_are_functions_of_their_keys_and_the_graph_of_the_seed() -> None:
    source = RuleGraph().load_source("val")
    many, few = (source.sample(episode_keys(0, 1, ids), SHAPE) for ids in (range(9), [7]))
    assert torch.equal(many.query.x[7], few.query.x[0]) and torch.equal(many.query.y[7], few.query.y[0])
    assert torch.equal(RuleGraph().graph.neighbours, RuleGraph().graph.neighbours)
    assert not torch.equal(RuleGraph().graph.neighbours, RuleGraph(seed=1).graph.neighbours)


def test_ranks_are_those_of_sorting_with_ties_in_the_middle() -> None:
    generator = torch.Generator().manual_seed(0)
    preds, targets = torch.randn(6, 7, 12, generator=generator), torch.randint(12, (6, 7), generator=generator)
    found = ranks(preds, targets)
    for t, q in np.ndindex(6, 7):
        order = sorted(range(12), key=lambda c: -preds[t, q, c].item())
        assert found[t, q] == order.index(targets[t, q].item()) + 1
    for metric, places in ((EpisodicHits1, 1), (EpisodicHits5, 5), (EpisodicHits10, 10)):
        torch.testing.assert_close(metric.per_episode(preds, targets), (found <= places).double().mean(1))
    torch.testing.assert_close(EpisodicMRR.per_episode(preds, targets), (1 / found).mean(1).double())
    assert (ranks(torch.zeros(1, 1, 11), torch.zeros(1, 1, dtype=torch.long)) == 6).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 100}, "vocabulary=100 leaves 61 entities.*take at least 167, eight of each type"),
        ({"candidates": 1}, "candidates=1 must be at least 2"),
        ({"values": 1}, "values=1 must be at least 2"),
        ({"n_way": 2}, "a task is one relation: n_way must be 1, not 2"),
        ({"n_query": 9000}, r"k_shot=1 \+ n_query=9000 pairs are needed of every relation, but 38 of 38 have fewer"),
        ({"candidates": 561}, "candidates=561 are asked for, but of one relation only .* take at most"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        RuleGraph(**options).setup("fit")
    assert len(str(refusal.value).splitlines()) == 1


# ---- files --------------------------------------------------------------------------------------------------------


def write(root: Path, files: dict[str, list[tuple[str, str, str]]]) -> None:
    for name, rows in files.items():
        (root / name).write_text("".join("\t".join(row) + "\n" for row in rows))


def capitals(relation: str, letter: str) -> list[tuple[str, str, str]]:
    return [(f"{letter}_land{n}", relation, f"{letter}_town{n}") for n in range(6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    background = [(f"{x}_{what}{n}", "is_a", what) for x in "abc" for what in ("land", "town") for n in range(6)]
    write(tmp_path, {
        "background.tsv": background, "train.tsv": capitals("capital", "a"), "val.tsv": capitals("seat", "b"),
        "test.tsv": [*capitals("port", "c"), ("c_land0", "port", "c_town1"), ("c_land0", "few", "c_town1")],
    })  # fmt: skip
    return tmp_path


def folder(root: Path, **options: Any) -> GraphFolder:
    return GraphFolder(str(root), **(dict(n_query=4, candidates=3, neighbours=3, vocabulary=60) | options))


def test_pairs_of_files_are_tasks_with_their_neighbours(root: Path) -> None:
    data = folder(root)
    data.prepare_data()
    data.setup("fit")
    assert data.ids == 1 + 2 + 36 + 2
    source, keys, names = data.source("test"), episode_keys(0, 2, range(200)), list(data.entities)
    drawn = source.draw(keys, data.shapes["test"])
    true = {(head, tail) for head, relation, tail in [*capitals("port", "c"), ("c_land0", "port", "c_town1")]}
    assert len(source.size) == 1, "the relation of one pair is left out"
    for t, q in np.ndindex(200, 5):
        head = names[drawn.pairs[t, q, 0]]
        right = [(head, names[tail]) in true for tail in drawn.candidates[t, q].tolist()]
        assert [c for c in range(3) if right[c]] == [drawn.answer[t, q].item()]
    land = data.entities["land"]
    assert data.neighbour_table[data.entities["a_land3"]].tolist() == [[1, 3 + land], [0, 0], [0, 0]]
    inverse = data.neighbour_table[land].tolist()
    assert inverse == [[2, 3 + data.entities[f"a_land{n}"]] for n in range(3)]


def test_the_files_of_nell_one_are_read_too(root: Path) -> None:
    data = folder(root)
    data.setup("fit")
    old = data.dataset("test").__getitems__(range(8))
    (root / "background.tsv").rename(root / "path_graph")
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        (root / f"{split}.tsv").unlink()
        (root / f"{name}_tasks.json").write_text(json.dumps(data.tasks[split]))
    again = folder(root)
    again.setup("fit")
    assert torch.equal(again.dataset("test").__getitems__(range(8)).query.x, old.query.x)
    candidates = [f"c_town{n}" for n in (5, 4, 3, 2)]
    (root / "rel2candidates.json").write_text(json.dumps({"port": candidates}))
    assert [list(folder(root).entities)[e] for e in folder(root).pool("test", "port")] == candidates


@pytest.mark.parametrize(
    ("file", "content", "options", "message"),
    [
        ("val.tsv", None, {}, "neither dev_tasks.json nor val.tsv; a graph is background.tsv"),
        ("val.tsv", "a b c\n", {}, "line 1 of .*val.tsv has 1 parts; it must be head, relation and tail"),
        ("val.tsv", "a_land0\tcapital\ta_town0\n", {}, "the relation 'capital' is in several splits"),
        ("dev_tasks.json", "[1]", {}, "dev_tasks.json must be an object"),
        ("dev_tasks.json", "{", {}, "dev_tasks.json is no JSON"),
        ("dev_tasks.json", '{"r": [["a", "b"]]}', {}, r"r has \['a', 'b'\], which is not \[head, 'r', tail\]"),
        (None, "", {"vocabulary": 20}, "has 41 ids of relations, their inverses and entities, but data.vocabulary=20"),
        (None, "", {"candidates": 9}, r"no relation of train in .* has 5 pairs \(k_shot \+ n_query\) and 9 candidates"),
    ],
)
def test_broken_folders_are_refused_by_name(
    root: Path, file: str | None, content: str | None, options: dict[str, Any], message: str
) -> None:
    if file and content is None:
        (root / file).unlink()
    elif file and content is not None:
        (root / file).write_text(content)
    with pytest.raises((ConfigError, DataError), match=message) as refusal:
        folder(root, **options).setup("fit")
    assert len(str(refusal.value).splitlines()) == 1


def test_a_small_graph_is_quick_to_play() -> None:
    data = rule_graph()
    data.setup("fit")
    assert data.describe("val") == "1-shot, 3 heads with 6 candidates each; one of 1 relations"
