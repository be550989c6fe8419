"""Calibration against torchmetrics, in real, tiny tests of the Trainer, and its diagram."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_meta.algorithms import ProtoNet
from lightning_meta.callbacks import EpisodeTable, RunSummary
from lightning_meta.reports import Calibration
from lightning_meta.reports.calibration import bin_sums, expected_calibration_error, reliability_diagram
from tests.conftest import blobs
from tests.reports.conftest import run_test


def random_predictions(n: int = 400) -> tuple[Tensor, Tensor]:
    """Logits of four classes that know something of the targets; some of a fifth class, which does not exist."""
    targets = torch.randint(4, (n,))
    logits = 2 * torch.randn(n, 5) + 2 * nn.functional.one_hot(targets, 5)
    logits[:, 4] = -torch.inf
    return logits.double(), targets


@pytest.mark.parametrize("bins", [15, 4])
def test_equals_torchmetrics_and_adds_up_over_batches(bins: int) -> None:
    logits, targets = random_predictions()
    parts = [bin_sums(logits[i : i + 90], targets[i : i + 90], bins) for i in range(0, 400, 90)]
    sums = torch.stack(parts).sum(0)
    probabilities = logits.softmax(-1)[:, :4]
    expected = multiclass_calibration_error(probabilities, targets, 4, n_bins=bins, norm="l1")
    assert expected > 0.02
    torch.testing.assert_close(expected_calibration_error(sums), expected, check_dtype=False)
    assert sums[0].sum() == 400
    torch.testing.assert_close(sums[1].sum(), probabilities.amax(1).sum())
    assert sums[2].sum() == (logits.argmax(1) == targets).sum()


def test_certain_predictions_are_in_the_last_bin() -> None:
    sums = bin_sums(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]), 15)
    assert sums[:, -1].tolist() == [2, 2, 1]
    assert expected_calibration_error(sums) == 0.5


def test_a_bin_ends_with_its_upper_edge() -> None:
    """As in the paper: bin m is ((m - 1) / M, m / M]. Between k classes that look alike the confidence is 1 / k."""
    for alike, place in ((4, 0), (2, 1), (1, 3)):
        logits = torch.full((1, 4), -torch.inf)
        logits[0, :alike] = 0
        sums = bin_sums(logits, torch.tensor([0]), 4)
        assert sums[0].tolist() == [float(i == place) for i in range(4)]
        assert sums[1].sum() == 1 / alike


def test_a_test_logs_the_error_of_all_its_queries(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Over batches of unequal size; it is printed in the summary and not among the episodes' own numbers."""
    module, data = ProtoNet(nn.Flatten(), distance="cosine"), blobs(eval_meta_batch_size=3)
    calibration = Calibration()
    for _ in range(2):  # the second test starts from nothing
        logged = run_test(tmp_path, module, data, EpisodeTable(), calibration, RunSummary())
    tasks = data.dataset("test").__getitems__(range(7))
    preds, targets = module.play(tasks).preds.softmax(-1).flatten(0, 1), tasks.query.y.flatten()
    expected = multiclass_calibration_error(preds, targets, preds.shape[-1], n_bins=15)
    assert logged["test/ece"] == pytest.approx(expected.item(), rel=1e-5)
    assert calibration.paths == [tmp_path / "pictures" / "calibration.png"]
    assert calibration.paths[0].stat().st_size > 0
    assert f"ece {logged['test/ece']:.4f}" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "test_episodes.csv").read_text().startswith("episode,acc,loss\n")


def test_bins_show_accuracy_confidence_and_size() -> None:
    count = torch.tensor([0.0, 10.0, 30.0])
    figure = reliability_diagram(count, torch.tensor([0, 6.0, 27.0]), torch.tensor([0, 4.0, 27.0]), 0.05, "MAML")
    above, below = figure.axes
    assert figure.get_suptitle() == "MAML\naccuracy 77.5%, mean confidence 82.5%\nexpected calibration error 0.0500"
    assert [bar.get_height() for bar in above.patches] == pytest.approx([0.4, 0.9])
    assert [bar.get_height() for bar in below.patches] == [0, 10, 30]
    gaps = [segment[:, 1].tolist() for segment in above.collections[0].get_segments()]
    assert gaps == [pytest.approx([0.6, 0.4]), pytest.approx([0.9, 0.9])]
