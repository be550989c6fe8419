"""Regret is what the best arm would have paid more, pull by pull, and nobody who knows it has any."""

from pathlib import Path

import pytest

from lightning_meta.algorithms import Oracle, Random, Thompson
from lightning_meta.reports import Regret
from lightning_meta.reports.regret import regret
from lightning_meta.worlds import Discrete
from tests.algorithms.rollout_cases import arms
from tests.reports.conftest import read, run_test


def test_regret_is_counted_pull_by_pull() -> None:
    module, data = Random(1, Discrete(3)), arms()
    module.world = data.world
    trials = data.dataset("test").__getitems__(range(4))
    played = module.record(trials)[-1]
    for task, of_task in enumerate(regret(played, trials.task)):
        chances, lost = trials.task[task].tolist(), 0.0
        assert of_task[0] == 0
        for pull in range(8):
            lost += max(chances) - chances[played.actions[task, pull, 0]]
            assert of_task[pull + 1].item() == pytest.approx(lost, abs=1e-5)


def test_who_knows_the_best_arm_has_none(tmp_path: Path) -> None:
    run_test(tmp_path, Oracle(1, Discrete(3)), arms(), Regret())
    rows = read(tmp_path / "regret.csv")
    assert len(rows) == 9 and all(abs(float(row["Oracle"])) < 1e-6 for row in rows)
    assert all(float(row[name]) > 0 for row in rows[1:] for name in ("Thompson", "Gittins"))


def test_thompson_sampling_is_not_beside_itself(tmp_path: Path) -> None:
    run_test(tmp_path, Thompson(3), arms(), Regret())
    (*_, row) = read(tmp_path / "regret.csv")
    assert [name for name in row if "ci95" not in name] == ["pulls", "Thompson", "Gittins"]
    assert 0 < float(row["Thompson"]) < 8
