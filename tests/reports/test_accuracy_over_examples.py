"""The accuracies of a tiny test of the Trainer, of new tasks and of those of training, and the figure."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_meta.algorithms import GPICL
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.images.projected import TASKS
from lightning_meta.reports import AccuracyOverExamples
from lightning_meta.reports.accuracy_over_examples import NEW, TRAINED, accuracy_over_examples
from tests.datamodules.test_projected import projected
from tests.reports.conftest import read, run_test


def test_accuracies_are_those_of_support_sets_that_grow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = GPICL(16, n_way=12, width=16, depth=1, heads=2).eval()
    data, report = projected(tasks=3, test_episodes=9), AccuracyOverExamples(episodes=8)
    logged = run_test(tmp_path, module, data, report)
    (picture,) = report.paths
    assert picture.stat().st_size > 1000
    rows = read(tmp_path / "accuracy_over_examples.csv")
    assert [int(row["examples"]) for row in rows] == [1, 2, 3, 4, 6, 8, 12, 17, 24]
    new = data.dataset("test")
    trained = data.dataset("test")
    trained.source = replace(trained.source, task_keys=episode_keys(data.seed, TASKS, range(3)))
    for name, dataset in {NEW: new, TRAINED: trained}.items():
        support, query = dataset.__getitems__(range(8))
        for row in rows:
            n = int(row["examples"])
            preds = module.play(Episode(Batch(support.x[:, :n], support.y[:, :n]), query)).preds
            assert float(row[name]) == pytest.approx((preds.argmax(-1) == query.y).double().mean().item())
    whole = trained.__getitems__(range(9))
    right = module.play(whole).preds.argmax(-1) == whole.query.y
    assert logged["test/trained_tasks_acc"] == pytest.approx(right.double().mean().item())
    assert logged["test/acc"] != logged["test/trained_tasks_acc"]


def test_without_an_end_of_tasks_there_are_no_tasks_of_training(tmp_path: Path) -> None:
    logged = run_test(tmp_path, GPICL(16, n_way=12, width=8, depth=1, heads=2), projected(), AccuracyOverExamples())
    assert "test/trained_tasks_acc" not in logged
    assert NEW in (row := read(tmp_path / "accuracy_over_examples.csv")[0]) and TRAINED not in row


def test_the_figure_shows_means_and_intervals_in_per_cent() -> None:
    curve = torch.tensor([0.2, 0.5]), torch.tensor([0.1, torch.nan])
    figure = accuracy_over_examples({NEW: curve, TRAINED: curve}, [1, 8], 0.1, 5)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [NEW, TRAINED, "guessing"]
    torch.testing.assert_close(
        torch.from_numpy(axes.lines[0].get_xydata()), torch.tensor([[1.0, 20], [8, 50]]).double()
    )
    assert axes.lines[2].get_ydata()[0] == pytest.approx(10)
