"""Baselines at their best beside the learned optimizer, in a real, tiny test of the Trainer, and the figure."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_meta.algorithms import LSTMOptimizer
from lightning_meta.core import SGD, Momentum
from lightning_meta.datamodules import QuadraticOptimizees
from lightning_meta.reports import LearningCurves
from lightning_meta.reports.learning_curves import learning_curves
from tests.reports.conftest import read, run_test

RATES = (0.001, 0.003, 0.01, 0.03, 1.0)


def data() -> QuadraticOptimizees:
    return QuadraticOptimizees(dimension=3, unroll_steps=8, val_episodes=6, test_episodes=7, eval_meta_batch_size=4)


def run(folder: Path, module: Any, datamodule: Any) -> tuple[LearningCurves, dict[str, float]]:
    report = LearningCurves(tuning_episodes=5, rates=RATES)
    return report, run_test(folder, module, datamodule, report)


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LearningCurves, dict[str, float], LSTMOptimizer]:
    torch.manual_seed(0)
    module, folder = LSTMOptimizer(hidden=4), tmp_path_factory.mktemp("run")
    torch.nn.init.normal_(module.rule.networks[0].output.bias)  # so that it moves
    return folder, *run(folder, module, data()), module


def test_each_baseline_has_the_rate_that_is_best_on_validation(tested: Any) -> None:
    folder, report, _, module = tested
    val = data().dataset("val").__getitems__(range(5))
    for name, make in {"SGD": SGD, "NAG": lambda lr: Momentum(lr, nesterov=True)}.items():
        final = [module.optimize(val, make(rate))[:, -1].mean().item() for rate in RATES]
        searched = [row for row in read(folder / "learning_rates.csv") if row["optimizer"] == name]
        assert [float(row["lr"]) for row in searched] == pytest.approx(RATES)
        assert [float(row["final_loss"]) for row in searched[:4]] == pytest.approx(final[:4], rel=1e-5)
        best = RATES[final.index(min(final))]
        assert report.baselines[name] == make(best)
        assert 0.001 < best < 1


def test_curves_and_paired_differences_are_over_the_test_optimizees(tested: Any) -> None:
    folder, report, metrics, module = tested
    test = data().dataset("test").__getitems__(range(7))
    ours, adam = (module.optimize(test, rule).double() for rule in (module.rule, report.baselines["Adam"]))
    assert metrics["test/adam_final_loss"] == pytest.approx(adam[:, -1].mean().item(), rel=1e-5)
    assert metrics["test/adam_lr"] == pytest.approx(report.baselines["Adam"].lr)
    below = adam[:, -1] - ours[:, -1]
    assert metrics["test/below_adam"] == pytest.approx(below.mean().item(), rel=1e-4)
    assert metrics["test/below_adam_ci95"] == pytest.approx(1.96 * below.std().item() / 7**0.5, rel=1e-4)
    written = read(folder / "learning_curves.csv")
    assert [int(row["step"]) for row in written] == list(range(9))
    for step in (0, 3, 8):
        assert float(written[step]["LSTMOptimizer"]) == pytest.approx(ours[:, step].mean().item(), rel=1e-5)
        assert float(written[step]["Adam"]) == pytest.approx(adam[:, step].mean().item(), rel=1e-5)
        ci95 = 1.96 * adam[:, step].std().item() / 7**0.5
        assert float(written[step]["Adam ci95"]) == pytest.approx(ci95, rel=1e-4)
    (picture,) = report.paths
    assert picture == folder / "pictures" / "learning_curves.png" and picture.stat().st_size > 1000


def test_a_best_rate_at_the_end_of_the_grid_is_told(caplog: pytest.LogCaptureFixture) -> None:
    module = LSTMOptimizer(hidden=4)
    module.loss_of = data().loss
    report = LearningCurves(rates=(1e-4, 1e-3))
    report._search(module, [data().dataset("val").__getitems__(range(2))])
    assert "SGD is best with the learning rate 0.001, the end of the grid" in caplog.text


def test_a_diverging_rate_is_never_the_best() -> None:
    """A loss that is not a number counts as infinite."""
    report = LearningCurves(rates=(0.01, 1e30))
    module = LSTMOptimizer(hidden=4)
    module.loss_of = data().loss
    report._search(module, [data().dataset("val").__getitems__(range(2))])
    assert report.baselines["SGD"].lr == 0.01
    assert [row["final_loss"] for row in report.search if row["optimizer"] == "SGD"][1] == torch.inf


def test_a_line_and_a_band_for_each_optimizer_on_a_logarithmic_axis() -> None:
    mean, ci95 = torch.tensor([10.0, 1.0, 0.1]), torch.tensor([1.0, 0.1, 0.2])
    diverging = torch.tensor([10.0, 1e9, torch.inf])
    figure = learning_curves({"LSTM": (mean, ci95), "SGD": (diverging, torch.full((3,), torch.nan))}, 50, "A title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "A title\nmean and 95 % interval over 50 optimizees"
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["LSTM", "SGD"]
    assert axes.lines[0].get_xdata() == pytest.approx([0, 1, 2])
    assert axes.lines[0].get_ydata() == pytest.approx(mean.tolist())
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(11.0)
    assert band.min() == pytest.approx(0.05), "a band that reaches below zero ends at half the mean"
    assert axes.get_ylim() == pytest.approx((0.05, 30)), "a diverging optimizer does not flatten the others"
