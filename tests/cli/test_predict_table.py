"""`predict` with a TabPFN on files of any columns: as in scikit-learn; what is wrong, in a line each.

That the command takes a run for it: tests/interop/test_sklearn.py.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from lightning_meta.algorithms import TabPFN, TabPFNRegression
from lightning_meta.cli.predict_table import predict_table
from lightning_meta.datamodules.rows import Row
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.interop.sklearn import TabPFNClassifier, TabPFNRegressor

NAMES = ["sepal length", "sepal width", "petal length", "petal width"]


@pytest.fixture(scope="module")
def module() -> TabPFN:
    torch.manual_seed(0)
    return TabPFN(features=6, width=16, depth=2, heads=2).eval()


@pytest.fixture
def iris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[str]]:
    """In files: 30 rows to learn from, 12 in question, with the columns in another order."""
    monkeypatch.chdir(tmp_path)
    data = load_iris()
    rows = np.random.default_rng(0).permutation(150)[:42]
    x, y = data.data[rows], [str(data.target_names[label]) for label in data.target[rows]]
    cells = [dict(zip(NAMES, x_F, strict=True)) for x_F in x]
    write("support.csv", [{"species": name} | row for row, name in zip(cells[:30], y[:30], strict=True)])
    write("query.csv", [{name: row[name] for name in NAMES[::-1]} for row in cells[30:]])
    return x, y


def write(path: str, rows: list[Row]) -> None:
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read(path: str) -> list[Row]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def asked(module: TabPFN, query: str, support: str, target: str | None = None) -> tuple[list[Row], list[str]]:
    """The rows, and the notes."""
    rows, facts = predict_table(module, Path(support), Path(query), target)
    return rows, [fact for name, fact in facts if name == "note"]


def test_predictions_are_those_of_scikit_learns_way(module: TabPFN, iris: tuple[np.ndarray, list[str]]) -> None:
    x, y = iris
    rows, facts = predict_table(module, Path("support.csv"), Path("query.csv"))
    expected = TabPFNClassifier(module).fit(x[:30], y[:30]).predict_proba(x[30:])
    assert [row["predicted"] for row in rows] == [sorted({*y})[label] for label in expected.argmax(1)]
    np.testing.assert_allclose([row["probability"] for row in rows], expected.max(1), atol=1e-4)
    assert list(rows[0]) == [*NAMES[::-1], "predicted", "probability"]
    assert [name for name, _ in facts] == ["support", "query"]
    assert facts[0][1].startswith("3 classes of species, from ") and facts[1][1] == "12 rows of 4 columns"


def test_what_is_left_out_or_unknown_is_told(module: TabPFN, iris: tuple[np.ndarray, list[str]]) -> None:
    """A constant column, a gap, a category and a class that the support has not, more features than the network has."""
    support, query = read("support.csv"), read("query.csv")
    before, _ = asked(module, "query.csv", "support.csv")
    write("support.csv", [row | {"place": 7} for row in support])
    write("query.csv", [row | {"place": 8} for row in query])
    after, notes = asked(module, "query.csv", "support.csv")
    assert [row["probability"] for row in after] == [row["probability"] for row in before]
    assert notes == ["the same in all rows of support.csv, left out: place"]
    write("support.csv", [row | {"colour": f"c{i % 4}", "empty": ""} for i, row in enumerate(support)])
    write("query.csv", [row | {"colour": "c9", "empty": 1, "petal width": "", "species": "rose"} for row in query])
    rows, notes = asked(module, "query.csv", "support.csv", "species")
    assert all(row["predicted"] != "rose" and row["probability"] > 1 / 3 for row in rows)
    assert notes == [
        "the same in all rows of support.csv, left out: empty",
        "query.csv has categories that support.csv has not, which count as missing (colour: c9)",
        "query.csv has classes that support.csv has not, so nothing is taken for them: rose",
        "8 features, of which each of the 8 orders has 6",
    ]


def test_mistakes_are_one_line(module: TabPFN, iris: tuple[np.ndarray, list[str]]) -> None:
    support, query = read("support.csv"), read("query.csv")
    write("one.csv", [row | {"species": "rose"} for row in support])
    write("same.csv", [{"a": 1, "b": "", "y": name} for name in "xy"])
    write("asked_same.csv", [{"a": 1, "b": 2}])
    write("named.csv", [row | {"name": f"n{i}"} for i, row in enumerate(4 * support)])
    write("named_query.csv", [row | {"name": "n1"} for row in query])
    write("word.csv", [row | {"petal width": "wide"} for row in query])
    write("fewer.csv", [{"sepal width": 3}])
    Path("empty.csv").write_text("species,petal width\n")
    for support_file, query_file, kind, message in (
        ("nowhere.csv", "query.csv", DataError, r"nowhere\.csv is no file"),
        ("empty.csv", "query.csv", DataError, r"empty\.csv has no rows"),
        ("one.csv", "query.csv", DataError, r"one\.csv has rows of one class, rose; give rows of two or more"),
        ("same.csv", "asked_same.csv", DataError, r"same\.csv has no column beside the target that is not the same"),
        ("named.csv", "named_query.csv", DataError, r"'name' has 120 different values that are no numbers, more than"),
        (
            "support.csv",
            "word.csv",
            DataError,
            r"word\.csv: column 'petal width' is one of numbers in support\.csv, bu",
        ),
        ("support.csv", "support.csv", ConfigError, r"^support\.csv has all columns of support\.csv, .*--target NAME"),
        ("support.csv", "fewer.csv", ConfigError, r"^fewer\.csv lacks several columns of support\.csv \(species, .*"),
    ):
        with pytest.raises(kind, match=message):
            asked(module, query_file, support_file)
    with pytest.raises(DataError, match=r"support\.csv .*has no column 'spices'; its columns are species, sepal"):
        asked(module, "query.csv", "support.csv", "spices")


def test_numbers_are_predicted_with_an_interval(iris: tuple[np.ndarray, list[str]]) -> None:
    torch.manual_seed(0)
    module, (x, _) = TabPFNRegression(features=6, width=16, depth=2, heads=2).eval(), iris
    write("known.csv", [dict(zip([*NAMES[:3], "y"], row, strict=True)) for row in x[:30]])
    write("asked.csv", [dict(zip(NAMES[:3], row, strict=True)) for row in x[30:, :3]])
    rows, facts = predict_table(module, Path("known.csv"), Path("asked.csv"))
    assert dict(facts)["support"] == f"30 rows with y from {x[:30, 3].min():g} to {x[:30, 3].max():g}"
    assert all(row["low"] < row["predicted"] < row["high"] for row in rows)
    columns = (x[:, :3] - x[:30, :3].mean(0)) / x[:30, :3].std(0)
    mean, std = TabPFNRegressor(module).fit(columns[:30], x[:30, 3]).predict(columns[30:], return_std=True)
    np.testing.assert_allclose([row["predicted"] for row in rows], mean, rtol=1e-3)
    np.testing.assert_allclose([row["high"] for row in rows], mean + 1.96 * std, rtol=1e-3)
    write("names.csv", [dict(zip([*NAMES[:3], "y"], [*row[:3], "tall"], strict=True)) for row in x[:30]])
    with pytest.raises(DataError, match=r"names\.csv: y must be a number in each row"):
        predict_table(module, Path("names.csv"), Path("asked.csv"))
