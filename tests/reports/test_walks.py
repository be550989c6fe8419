"""Walks are drawn to their ends, and returns by round are those of the test."""

from pathlib import Path

import pytest
import torch

from lightning_meta.algorithms import MAMLRL, Oracle
from lightning_meta.reports import ReturnByRound
from lightning_meta.reports.walks import places
from lightning_meta.worlds import Continuous, Navigation
from tests.algorithms.rollout_cases import navigation, rollouts
from tests.reports.conftest import read, run_test


def test_walks_of_who_knows_the_goal_end_there() -> None:
    module, data = Oracle(2, Continuous(2)), rollouts(Navigation(6))
    module.world = data.world
    trials = data.dataset("test").__getitems__(range(5))
    for played in module.record(trials):
        for goal, of_task in zip(trials.task, places(played, 2), strict=True):
            assert len(of_task) == 2
            for walk in of_task:
                assert walk[0].tolist() == [0, 0]
                assert (walk[-1] - goal).abs().max() < 0.01
                assert walk.diff(dim=0).abs().max() <= 0.1 + 1e-6


def test_returns_by_round_are_those_of_the_test(tmp_path: Path) -> None:
    torch.manual_seed(0)
    logged = run_test(tmp_path, MAMLRL(2, Continuous(2), hidden=[4]), navigation(), ReturnByRound())
    rows = read(tmp_path / "return_by_round.csv")
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert float(row["return"]) == pytest.approx(logged[f"test/return_{row['round']}"], abs=1e-5)
        assert float(row["return_ci95"]) == pytest.approx(logged[f"test/return_{row['round']}_ci95"], abs=1e-5)
