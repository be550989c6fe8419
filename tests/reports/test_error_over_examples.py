"""The errors of a tiny test of the Trainer, the estimators beside them, and the figure."""

from pathlib import Path

import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor

from lightning_meta.algorithms import InContextRegression
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import LinearFunctions
from lightning_meta.reports import ErrorOverExamples
from lightning_meta.reports.error_over_examples import averaging, error_over_examples, least_squares, nearest_neighbours
from tests.reports.conftest import read, run_test


def test_errors_are_those_of_support_sets_that_grow(tmp_path: Path) -> None:
    module = InContextRegression(x_size=3, width=8, depth=1, heads=2).eval()
    data = LinearFunctions(dims=3, k_shot=5, n_query=4, test_episodes=8, eval_meta_batch_size=4)
    report = ErrorOverExamples(episodes=6)
    logged = run_test(tmp_path, module, data, report)
    (picture,) = report.paths
    assert picture.name == "error_over_examples.png" and picture.stat().st_size > 1000
    rows = read(tmp_path / "error_over_examples.csv")
    assert [row["examples"] for row in rows] == ["1", "2", "3", "4", "5"]
    support, query = data.dataset("test").__getitems__(range(6))
    for n, row in enumerate(rows, 1):
        few = Episode(Batch(support.x[:, :n], support.y[:, :n]), query)
        assert float(row["InContextRegression"]) == pytest.approx(module.play(few).loss.mean().item(), rel=1e-5)
    assert float(rows[1]["least squares"]) > 0.05 and float(rows[2]["least squares"]) < 1e-6
    everything = data.dataset("test").__getitems__(range(8))
    for name, estimate in {"averaging": averaging, "nearest_neighbours": nearest_neighbours}.items():
        error = (estimate(everything.support, everything.query.x) - everything.query.y).square().mean()
        assert logged[f"test/{name}_mse"] == pytest.approx(error.item(), rel=1e-5)
        assert logged[f"test/{name}_mse_ci95"] > 0
    assert logged["test/least_squares_mse"] < 1e-6


def test_estimators_equal_those_of_others() -> None:
    x, y, target = torch.randn(2, 7, 3).double(), torch.randn(2, 7, 1).double(), torch.randn(2, 5, 3).double()
    for t in range(2):
        neighbours = KNeighborsRegressor(3).fit(x[t], y[t]).predict(target[t])
        found = nearest_neighbours(Batch(x, y), target)[t]
        torch.testing.assert_close(found, torch.from_numpy(neighbours).view(-1, 1))
        expected = target[t] @ torch.linalg.lstsq(x[t], y[t]).solution
        torch.testing.assert_close(least_squares(Batch(x, y), target)[t], expected)
        weights = sum(x[t, k] * y[t, k] for k in range(7)) / 7
        torch.testing.assert_close(averaging(Batch(x, y), target)[t, :, 0], target[t] @ weights)
    assert nearest_neighbours(Batch(x[:, :2], y[:, :2]), target).shape == (2, 5, 1)


def test_a_line_and_a_band_for_each_learner() -> None:
    mean, ci95 = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.1, 0.1, 0.01])
    figure = error_over_examples({"learner": (mean, ci95), "fit": (mean / 2, ci95)}, 50, "A title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "A title\nmean and 95 % interval over 50 episodes; predicting zero has 1"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["learner", "fit"]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert axes.lines[1].get_ydata() == pytest.approx((mean / 2).tolist())
