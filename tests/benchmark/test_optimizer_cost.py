"""The measurement of what a step costs, on a few steps."""

from pathlib import Path

import pytest
import yaml

from lightning_meta.benchmark import optimizer_cost

SMALL = {
    "trainer": {"accelerator": "cpu", "max_steps": 1},
    "data": {
        "class_path": "lightning_meta.datamodules.QuadraticOptimizees",
        "init_args": {"unroll_steps": 10, "test_episodes": 3},
    },
    "model": {"class_path": "lightning_meta.algorithms.LSTMOptimizer"},
}


def test_a_row_for_each_optimizer_with_its_time_against_adams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    optimizer_cost.main(["small.yaml"])
    *_, head, line, sgd, nag, rmsprop, adam, learned = capsys.readouterr().out.strip().splitlines()
    assert f"{head}\n{line}" == optimizer_cost.HEADER
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in (sgd, nag, rmsprop, adam, learned)]
    assert [row[1] for row in rows] == ["SGD", "NAG", "RMSprop", "Adam", "LSTMOptimizer"]
    assert rows[3][3] == "1.0"
    times = [float(row[2]) for row in rows]
    assert times[4] > times[3] > 0
    assert float(rows[4][3]) == pytest.approx(times[4] / times[3], rel=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_experiments_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        optimizer_cost.main([])
    assert "required: NAME" in capsys.readouterr().err


def test_what_has_no_rule_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    episodic = SMALL | {
        "data": {"class_path": "lightning_meta.datamodules.Quadratics", "init_args": {"test_episodes": 3}},
        "model": {"class_path": "lightning_meta.algorithms.LSTMLearner", "init_args": {"in_features": 2}},
    }
    Path("episodic.yaml").write_text(yaml.safe_dump(episodic))
    with pytest.raises(SystemExit, match="LSTMLearner learns no optimizer"):
        optimizer_cost.main(["episodic.yaml"])
