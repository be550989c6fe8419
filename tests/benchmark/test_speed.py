"""The speed comparison: what it compares is the same, and what it reports is what it measured."""

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_meta.benchmark import growth, speed
from lightning_meta.benchmark.speed import (
    Cell,
    Row,
    bank,
    check,
    check_gradients,
    contenders,
    geometric_mean,
    means,
    table,
)
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.errors import DataError
from tests.conftest import needs_learn2learn

SMALL = Cell("MAML", "omniglot", EpisodeShape(3, 1, 2), 2, 2)


@needs_learn2learn
@pytest.mark.parametrize(
    "cell",
    [
        SMALL,
        replace(SMALL, algorithm="FOMAML"),
        replace(SMALL, algorithm="ANIL"),
        *(replace(SMALL, algorithm=name, inner_steps=0) for name in ("ProtoNet", "MatchingNet", "RelationNet", "R2D2")),
        replace(SMALL, algorithm="Reptile"),
        Cell("MAML", "sinusoid", EpisodeShape(1, 10, 10), 2, 2),
    ],
    ids=lambda cell: f"{cell.algorithm}-{cell.data}",
)
def test_all_contenders_take_the_same_meta_gradient(cell: Cell) -> None:
    assert check_gradients(cell) < 1e-10


@needs_learn2learn
def test_another_meta_gradient_is_not_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    first_order = speed.PEERS["FOMAML"]["plain"]
    cell = replace(SMALL, algorithm="ANIL")
    monkeypatch.setitem(speed.PEERS["ANIL"], "plain", first_order)  # adapts the body too
    with pytest.raises(DataError, match=r"ANIL omniglot 3w1s.*differ by"):
        check_gradients(cell)


@needs_learn2learn
def test_learn2learn_draws_episodes_of_the_same_shape() -> None:
    ours, theirs = (
        next(entrant.episodes(0) for entrant in contenders(SMALL) if entrant.name == name)
        for name in ("ours", "learn2learn")
    )
    for own, drawn in zip(torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(theirs), strict=True):
        assert drawn.shape == own.shape
        assert drawn.dtype == own.dtype
    assert theirs.support.y.sort().values.tolist() == [[0, 1, 2]] * 2
    # A query image is one of the same class as the support image of its label.
    images = bank("omniglot").inputs.float().div(255)
    (support, labels), (query, query_labels) = (tuple(leaf[0] for leaf in batch) for batch in theirs)

    def owner(image: torch.Tensor) -> int:
        return int((images - image).abs().flatten(1).sum(1).argmin()) // 20

    owners = {int(label): owner(image) for image, label in zip(support, labels, strict=True)}
    assert [owner(image) for image in query] == [owners[int(label)] for label in query_labels]


def measured(ours: list[float], plain: list[float]) -> Row:
    return Row(SMALL, {"ours": ours, "plain": plain}, {"ours": 10.0, "plain": 20.0}, 1.0, {"ours": 0.01})


def test_ratios_are_paired_within_an_alternation() -> None:
    row = measured([1.0, 2.0, 4.0], [2.0, 6.0, 8.0])
    assert row.ratios("plain") == [2.0, 3.0, 2.0]
    assert row.ratio("plain") == 2.0
    assert row.tasks_per_second("ours") == 1.0
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_the_table_states_ratio_memory_limit_and_sampling() -> None:
    line = table([measured([1.0, 2.0, 4.0], [2.0, 6.0, 8.0])], rate=2.0).splitlines()[-1]
    assert "2.00 (2.00-3.00)" in line
    assert "10, 20" in line
    assert "25%" in line  # one GFLOP at 2 GFLOP/s would take half a second, the step took two
    assert "0.5%" in line


def test_compiled_cells_replace_the_others_in_one_mean_only() -> None:
    waves = Cell("MAML", "sinusoid", EpisodeShape(1, 10, 10), 1, 25)
    ratios = {SMALL: 2.0, waves: 8.0, replace(waves, compiled=True): 18.0}
    rows = [Row(cell, {"ours": [1.0], "plain": [ratio]}, {}, 1.0, {}) for cell, ratio in ratios.items()]
    lines = means(rows).splitlines()
    assert lines[0] == "| cells | times plain |"
    assert "| all cells | 4.00 (least 2.00) |" in lines
    assert "| all cells, sine waves compiled | 6.00 (least 2.00) |" in lines
    assert "| sine waves, compiled | 18.00 (least 18.00) |" in lines


def test_what_was_written_is_read(tmp_path: Path) -> None:
    row = measured([1.0, 2.0, 4.0], [2.0, 6.0, 8.0])
    record = {"gflop_per_second": 2.0, "rows": [dataclasses.asdict(row) | {"name": row.cell.name}]}
    (tmp_path / "speed.json").write_text(json.dumps(record))
    assert speed.committed_tables(tmp_path / "speed.json") == {"cells": table([row], 2.0), "means": means([row])}


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(DataError, match=r"no cell has 'sinusiod'.*MAML sinusoid 10s"):
        speed.main(["--only", "sinusiod"])


@pytest.mark.parametrize(("now", "fails"), [(2.0, False), (1.75, False), (1.65, True)])
def test_the_check_fails_when_the_ratio_fell(
    now: float, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "speed.json").write_text(json.dumps({"rows": [{"name": SMALL.name, "ratios": {"plain": 2.0}}]}))
    monkeypatch.setattr(speed, "small_grid", lambda: [SMALL])
    monkeypatch.setattr(speed, "measure", lambda cell: measured([1.0], [now]))
    if fails:
        with pytest.raises(DataError, match=r"1 of 1 cells lost more than 15%.*MAML omniglot"):
            check(tmp_path / "speed.json")
    else:
        check(tmp_path / "speed.json")


def test_the_committed_figures_have_every_cell_of_the_check() -> None:
    names = {row["name"] for row in json.loads(speed.COMMITTED.read_text())["rows"]}
    assert {cell.name for cell in speed.small_grid()} <= names
    assert len(speed.small_grid()) >= 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_the_action() -> None:
    held = []
    assert speed.peak_memory(lambda: held.append(torch.ones(64 * 2**18))) == pytest.approx(64, rel=0.2)
    assert speed.peak_memory(lambda: None) < 8


def test_growth_is_the_slope_of_the_last_two_points() -> None:
    assert growth.Curve("n_way", [1, 10, 20], [5.0, 1.0, 4.0], [0.0] * 3).growth == pytest.approx(2.0)


def test_growth_varies_one_size() -> None:
    found = growth.curve("n_way", (2, 4), growth.drawing, growth.Sizes(classes=8))
    assert found.values == [2, 4]
    assert all(seconds > 0 for seconds in found.seconds)
