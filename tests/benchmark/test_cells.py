"""Searches on a table of all cells, against what is known of them; and how the table is made."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import DARTS, RandomSearch
from lightning_meta.backbones import Cell
from lightning_meta.benchmark import cells
from lightning_meta.benchmark.cells import SEARCHES, Table, load, play, read, trained
from lightning_meta.core import Momentum
from lightning_meta.errors import ConfigError, DataError
from tests.algorithms.bilevel_cases import cell, whole_trainings
from tests.backbones.test_cell import plain


def table(noise: float = 0.0) -> Table:
    """Cells that are the better the smaller their place; what is held out differs by noise."""
    space = Cell(budget=160)
    test = torch.linspace(0.9, 0.3, len(space.cells_KE), dtype=torch.float64)[:, None].repeat(1, 2)
    return Table(space, test + noise * torch.randn(test.shape, generator=torch.Generator().manual_seed(0)), test)


def test_the_best_of_random_cells_has_the_rank_that_it_should_have() -> None:
    """Of n drawn from K with replacement, the expected least rank is the sum over r of (1 - (r - 1) / K)^n."""
    whole, n = table(), 8
    size = len(whole.ranks_K)
    expected = sum((1 - (rank - 1) / size) ** n for rank in range(1, size + 1))
    found = play(whole, "random", n, 600)
    assert abs(found.rank - expected) < 2 * found.rank_ci95 < 0.3 * expected
    assert found.test == pytest.approx(0.9 - 0.6 * (found.rank - 1) / (size - 1))


def test_equal_cells_share_their_places() -> None:
    test = torch.tensor([0.5, 0.7, 0.5, 0.9, 0.5], dtype=torch.float64)[:, None]
    assert Table(Cell(), test, test).ranks_K.tolist() == [4, 2, 4, 1, 4]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_pays_for_what_it_tries_and_depends_on_its_seed_alone(name: str) -> None:
    whole = table()
    tried = SEARCHES[name](whole.cell, whole.held_out_KS[:, 0], 10, 3)
    assert len(tried) == 10 and tried.min() >= 0 and tried.max() < len(whole.ranks_K)
    assert torch.equal(tried, SEARCHES[name](whole.cell, whole.held_out_KS[:, 0], 10, 3))
    assert not torch.equal(tried, SEARCHES[name](whole.cell, whole.held_out_KS[:, 0], 10, 4))


def test_what_is_found_is_judged_by_test_and_not_by_reward() -> None:
    """With rewards of noise alone the rank is that of a single random cell."""
    whole = table()
    blind = whole._replace(held_out_KS=torch.rand(whole.test_KS.shape, generator=torch.Generator().manual_seed(1)))
    found = play(blind, "random", 48, 400)
    assert 0.3 * len(whole.ranks_K) < found.rank < 0.7 * len(whole.ranks_K)
    assert play(whole, "random", 48, 400).rank < 6


@pytest.mark.slow
def test_evolution_climbs_where_neighbours_are_alike() -> None:
    """A cell is as good as it has pools: with many evaluations evolution finds the best of all, REINFORCE too."""
    space = Cell(budget=160)
    pools = (space.cells_KE == space.operations.index("pool")).double().mean(1)[:, None]
    whole = Table(space, pools, pools)
    at_random = play(whole, "random", 40, 200)
    for name in ("evolution", "REINFORCE"):
        found = play(whole, name, 40, 200)
        assert found.test - found.test_ci95 > at_random.test + at_random.test_ci95


def test_a_row_of_the_table_is_a_training_of_the_network_of_a_cell_by_torch() -> None:
    module = RandomSearch(cell(), 4, inner_optimizer=Momentum)
    data = whole_trainings(unroll_steps=5, truncation=5, test_per_class=3, val_per_class=2, held_out_per_class=2)
    data.setup("fit")
    places = [0, 7, 40]
    found = trained(module, module.cell.cells_KE[places], data, seed=3)
    trial = data.dataset("test").__getitems__([3])
    start = {name: value[0] for name, value in module.begin(trial).params.items()}
    for at, place in enumerate(places):
        module.network.load_state_dict(start, strict=False)
        alone = plain(module.cell.double(), module.cell.named(module.cell.cells_KE[place]).split("|"))
        network = nn.Sequential(alone.float(), module.network.head).requires_grad_(True)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for x, y in zip(trial.support.x[0], trial.support.y[0], strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        module.network.float()
        for of_split, judge in zip(found, (data.all_held_out(), data.judges("test")), strict=True):
            expected = (network(judge.x).argmax(1) == judge.y).double().mean().item()
            assert of_split[at] == pytest.approx(expected)


def test_trainings_that_are_there_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def quick(module: Any, cells_NE: torch.Tensor, images: Any, seed: int) -> list[list[float]]:
        done.extend([seed] * len(cells_NE))
        return [[0.5] * len(cells_NE)] * 2

    monkeypatch.setattr(cells, "data", whole_trainings)
    monkeypatch.setattr(cells, "trained", quick)
    path = tmp_path / "cells.csv"
    cells.main(["--train", "--seeds", "0", "--table", str(path)])
    cells.main(["--train", "--seeds", "0", "1", "--table", str(path)])
    assert done == [0] * 85 + [1] * 85 and len(read(path)) == 250, "40 are the same as others"
    assert load(path, 160).test_KS.shape == (109, 2)
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(DataError, match=r"lacks 1 trainings of 250, such as conv3\|conv3\|conv3, seed 1; add them"):
        load(path, 10**6)
    with pytest.raises(ConfigError, match=r"budget=-1, but the smallest cell .* has 0 parameters; raise it"):
        load(path, -1)


def test_the_table_that_is_there_is_whole_and_its_sizes_are_right() -> None:
    space = Cell()
    with cells.TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = {space.named(one): size for one, size in zip(space.cells_KE, space.sizes_K.tolist(), strict=True)}
    assert {(row["cell"], int(row["parameters"])) for row in rows} == {*sizes.items()}
    assert len({row["seed"] for row in rows}) * 125 == len(rows) and len({row["seed"] for row in rows}) >= 2
    cut_off = [float(row["test"]) for row in rows if row["cell"] in ("zero|zero|zero", "conv3|zero|zero")]
    others = [float(row["test"]) for row in rows if row["cell"] in ("conv3|conv3|conv3", "zero|conv3|zero")]
    assert max(cut_off) < 0.15 < 0.5 < min(others), "without a way to the last node a network knows nothing"


def test_the_command_judges_searches_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cells, "load", lambda path, budget: table())
    found = DARTS(Cell(budget=160))
    with torch.no_grad():
        for edge, operation in enumerate(found.cell.cells_KE[4]):
            found.alphas_EO[edge, operation] = 5.0
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model:\n  class_path: lightning_meta.algorithms.DARTS\n")
    monkeypatch.setattr("lightning_meta.checkpoints.best_or_last", lambda place: place / "x.ckpt")
    monkeypatch.setattr(DARTS, "load_from_checkpoint", classmethod(lambda cls, *args, **kwargs: found))
    out = tmp_path / "out"
    cells.main([str(run), "--evaluations", "4", "--searches", "5", "--out", str(out)])
    rows = json.loads((out / "cells.json").read_text())
    assert [row["search"] for row in rows] == [*SEARCHES, "DARTS"]
    assert rows[-1]["rank"] == 5 and rows[-1]["searches"] == 1 and rows[-1]["rank_ci95"] is None
    printed = capsys.readouterr().out
    assert printed.startswith((out / "cells.md").read_text()) and "Best: zero|zero|zero (90.0 %" in printed
    found.cell.cells_KE = found.cell.cells_KE[1:]
    with pytest.raises(ConfigError, match="among 108 other cells than the 109 of the table; give --budget"):
        cells.main([str(run), "--searches", "2"])
