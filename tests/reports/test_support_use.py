"""Adaptation to another task's support set, in real, tiny tests of the Trainer."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.core import Batch, Episode
from lightning_meta.modules import EpisodicModule
from lightning_meta.reports import SupportUse
from tests.conftest import blobs, conv4
from tests.reports.conftest import read, run_test

EPISODES = 7


def run(folder: Path, module: EpisodicModule, split: str) -> dict[str, dict[str, str]]:
    """Rows of the table by support set, after a test."""
    run_test(folder, module, blobs(eval_meta_batch_size=3), SupportUse(split, EPISODES))
    return {row["support"]: row for row in read(folder / "support_use.csv")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_scores_are_those_of_the_episodes_played_by_hand(split: str, tmp_path: Path) -> None:
    module = ProtoNet(nn.Flatten()).eval()
    rows = run(tmp_path, module, split)
    data = blobs()
    data.setup("fit" if split == "train" else "test")
    first = 10**9 if split == "train" else 0
    (support, query) = data.dataset(split).__getitems__(range(first, first + EPISODES + 1))

    def scores(start: int) -> torch.Tensor:
        own = Batch(support.x[start : start + EPISODES], support.y[start : start + EPISODES])
        tasks = Episode(own, Batch(query.x[:EPISODES], query.y[:EPISODES]))
        return module.metric.per_episode(module.play(tasks).preds, tasks.query.y)

    own, other = scores(0), scores(1)
    assert float(rows["own"]["acc"]) == pytest.approx(own.mean().item())
    assert float(rows["another's"]["acc"]) == pytest.approx(other.mean().item())
    difference = rows["difference"]
    assert float(difference["acc"]) == pytest.approx((other - own).mean().item())
    assert float(difference["acc_ci95"]) == pytest.approx(1.96 * (other - own).std().item() / EPISODES**0.5)
    assert difference["split"] == split
    assert own.mean() > other.mean() + 0.2  # it does read the support set


def test_a_module_that_ignores_the_support_set_shows_no_difference(tmp_path: Path) -> None:
    rows = run(tmp_path, MAML(conv4(), n_way=3, eval_inner_steps=0), "train")
    assert float(rows["difference"]["acc"]) == float(rows["difference"]["acc_ci95"]) == 0
    assert rows["own"]["acc"] == rows["another's"]["acc"]
