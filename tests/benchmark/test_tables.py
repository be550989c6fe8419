"""Real tables beside scikit-learn's classifiers: the ranks, the report, and that methods are given the same splits."""

import pytest
import torch

from lightning_meta.algorithms import TabPFN, TabPFNRegression
from lightning_meta.benchmark import tables
from lightning_meta.benchmark.tables import Row, mean_ranks, measure, report
from lightning_meta.errors import ConfigError


def test_the_same_accuracy_shares_a_rank() -> None:
    rows = [Row("a", 20, "x", [0.9]), Row("a", 20, "y", [0.5]), Row("a", 20, "z", [0.9])]
    rows += [Row("b", 20, name, [acc]) for name, acc in (("x", 0.1), ("y", 0.2), ("z", 0.3))]
    rows += [Row("b", 50, name, [1.0]) for name in "xyz"]
    assert mean_ranks(rows, 20) == {"x": (1.5 + 3) / 2, "y": (3 + 2) / 2, "z": (1.5 + 1) / 2}
    assert set(mean_ranks(rows, 50).values()) == {2}


def test_every_method_is_measured_on_the_same_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same method has twice the same accuracies; those of an untrained network are between 0 and 1."""
    torch.manual_seed(0)
    twice = {name: tables.methods(None)["3 nearest neighbours"] for name in ("one", "other")}
    found = tables.methods(TabPFN(width=8, depth=1, heads=2))
    monkeypatch.setattr(tables, "methods", lambda run, numbers: twice | {"TabPFN": found["TabPFN"]})
    one, other, ours = measure(None, ["iris"], [20], 3)
    assert one.scores == other.scores and len(set(one.scores)) > 1 and min(one.scores) > 0.7
    assert len(ours.scores) == 3 and 0 <= min(ours.scores) <= max(ours.scores) <= 1
    text = report([one, ours])
    assert text.startswith("| table, rows | one | TabPFN |")
    assert "| mean rank, 20 | 1.00 | 2.00 |" in text


def test_sizes_that_a_table_has_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="--rows 5: of digits 10 to 1697 rows can be learned from"):
        measure(None, ["digits"], [5], 2)
    with pytest.raises(ConfigError, match="--rows 60: of iris 3 to 50 rows can be learned from"):
        measure(None, ["iris"], [60], 2)


def test_the_command_prints_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    module = TabPFN(width=8, depth=1, heads=2)
    monkeypatch.setattr("lightning_meta.interop.sklearn.trained", lambda place: module)
    monkeypatch.setattr(tables, "measure", lambda *given: asked.append(given) or [Row("iris", 20, "x", [0.5, 0.7])])
    tables.main(["a_run", "--rows", "20", "--splits", "2", "--tables", "iris"])
    assert asked == [(module, ["iris"], [20], 2)]
    assert capsys.readouterr().out.splitlines()[2].startswith("| iris, 20 | 60.00 ± ")
    with pytest.raises(ConfigError, match="--tables diabetes: a_run is a TabPFN, which is for breast_cancer, wine"):
        tables.main(["a_run", "--tables", "iris", "diabetes"])


def test_regression_is_measured_by_r2_beside_regressors() -> None:
    torch.manual_seed(0)
    ours, ridge, *_ = measure(TabPFNRegression(width=8, depth=1, heads=2), ["diabetes"], [50], 3)
    assert (ours.method, ridge.method) == ("TabPFN", "ridge regression")
    assert 0.2 < sum(ridge.scores) / 3 < 0.6 and max(ours.scores) < 0.2
    assert report([ours, ridge]).splitlines()[2].startswith("| diabetes, 50 | ")
