"""The errors of test streams, in a real, tiny test of the Trainer, and the figure."""

from pathlib import Path

import pytest
import torch

from lightning_meta.algorithms import LSTMLearner
from lightning_meta.datamodules import Quadratics
from lightning_meta.reports import SequenceError
from lightning_meta.reports.sequence_error import sequence_error
from tests.reports.conftest import read, run_test


def test_errors_are_those_that_the_hooks_log(tmp_path: Path) -> None:
    module, data = LSTMLearner(hidden=8), Quadratics(k_shot=10, test_episodes=8)
    report = SequenceError(episodes=6)
    run_test(tmp_path, module, data, report)
    (picture,) = report.paths
    assert picture.name == "sequence_error.png" and picture.stat().st_size > 1000
    rows = read(tmp_path / "sequence_error.csv")
    logs = module.play(data.dataset("test").__getitems__(range(6))).logs
    for n in (1, 2, 5, 10):
        assert rows[n - 1]["examples_seen"] == str(n - 1)
        assert float(rows[n - 1]["LSTMLearner"]) == pytest.approx(logs[f"mse_{n}"].mean().item())
    plain, centred = (float(rows[0][name]) for name in ("least squares", "least squares, centred"))
    assert plain > 5 * centred  # before the first point: zero against the mean of all functions
    assert float(rows[9]["least squares"]) < 1e-4 * centred


def test_a_line_and_a_band_for_each_learner_on_a_logarithmic_axis() -> None:
    mean, ci95 = torch.tensor([0.1, 0.01, 0.001]), torch.tensor([0.01, 0.001, 0.0001])
    exact = torch.tensor([0.2, 0.1, 1e-12])
    figure = sequence_error({"LSTM": (mean, ci95), "fit": (exact, torch.full((3,), torch.nan))}, 50, "A title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "A title\nmean and 95 % interval over 50 episodes"
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["LSTM", "fit"]
    assert axes.lines[0].get_xdata() == pytest.approx([0, 1, 2])
    assert axes.lines[0].get_ydata() == pytest.approx(mean.tolist())
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.11) and band.min() == pytest.approx(0.0009)
    assert 1e-4 < axes.get_ylim()[0] < 1e-3  # an exact fit does not flatten the others
