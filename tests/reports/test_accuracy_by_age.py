"""Accuracy by age: classes are put in the order in which they were seen last, by hand and in a test of a learner."""

import csv
from pathlib import Path

import torch
from torch.nn import functional as F

from lightning_meta.algorithms import OML
from lightning_meta.reports import AccuracyByAge
from lightning_meta.reports.accuracy_by_age import by_age
from tests.conftest import blobs, conv4
from tests.reports.conftest import run_test


def test_classes_are_in_the_order_in_which_they_were_seen_last() -> None:
    """In the first stream 2, 0, 1; in the second as they are numbered."""
    stream = torch.tensor([[1, 2, 2, 0, 1], [0, 0, 1, 2, 2]])
    query = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2)
    said = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 2, 2]])
    found = by_age(F.one_hot(said, 3).double(), query, stream, 3)
    assert found.tolist() == [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]


def test_the_mean_over_ages_is_the_accuracy_and_the_ends_are_those_that_oml_logs(tmp_path: Path) -> None:
    module, report = OML(conv4(None), n_way=5, inner_lr=3.0), AccuracyByAge()
    logged = run_test(tmp_path, module, blobs(n_way=5, n_query=4, eval_meta_batch_size=4), report)
    rows = list(csv.DictReader((tmp_path / "accuracy_by_age.csv").open()))
    acc = [float(row["acc"]) for row in rows]
    assert len(acc) == 5
    assert abs(sum(acc) / 5 - logged["test/acc"]) < 1e-5
    assert abs(acc[0] - logged["test/acc_oldest"]) < 1e-5
    assert abs(acc[-1] - logged["test/acc_newest"]) < 1e-5
    assert max(acc) - min(acc) > 0.1
    assert [path.stem for path in report.paths] == ["accuracy_by_age"]
