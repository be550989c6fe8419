"""The digest of test episodes: the same for the same ones however they are played, another for others."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import SNAIL, CNPClassifier, LSTMOptimizer, ProtoNet
from lightning_meta.callbacks import EpisodeTable
from lightning_meta.callbacks.episode_digest import list_digest, task_digests
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import QuadraticOptimizees
from tests.conftest import Blobs, conv4, random_episodes


def digest(module: pl.LightningModule, data: pl.LightningDataModule, **switches: Any) -> str | None:
    table = EpisodeTable()
    with TemporaryDirectory() as folder:
        pl.Trainer(
            accelerator="cpu", inference_mode=False, logger=False, enable_checkpointing=False, callbacks=[table],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **switches,
        ).test(module, data, verbose=False)  # fmt: skip
    return table.digest


class OtherBlobs(Blobs):
    """The last pixel of its images is another."""

    def load_source(self, split: Any) -> Any:
        bank = super().load_source(split)
        bank.inputs[..., -1, -1] ^= 1
        return bank


def settings(**overrides: Any) -> dict[str, Any]:
    return dict(n_way=3, k_shot=2, n_query=2, eval_meta_batch_size=3, test_episodes=7) | overrides


@pytest.fixture(scope="module")
def of_protonet() -> Iterator[str]:
    found = digest(ProtoNet(nn.Flatten()), Blobs(**settings()))
    assert found
    assert len(found) == 24
    yield found


def test_is_the_same_however_episodes_are_played(of_protonet: str, tmp_path: Path) -> None:
    """In other meta-batches, by an algorithm that reads a stream, as features of a frozen backbone, in float64."""
    assert digest(ProtoNet(nn.Flatten()), Blobs(**settings(eval_meta_batch_size=2))) == of_protonet
    stream = SNAIL(conv4(), n_way=3, k_shot=2, embedding=8, filters=6)
    assert digest(stream, Blobs(**settings())) == of_protonet
    frozen = CNPClassifier(conv4("running"), n_way=3, hidden=(4,), freeze=True, feature_folder=str(tmp_path))
    assert digest(frozen, Blobs(**settings())) == of_protonet
    assert digest(ProtoNet(nn.Flatten()), Blobs(**settings()), precision="64-true") == of_protonet


@pytest.mark.parametrize("other", [{"seed": 1}, {"n_query": 3}, {"test_episodes": 6}])
def test_is_another_for_other_episodes(of_protonet: str, other: dict[str, int]) -> None:
    assert digest(ProtoNet(nn.Flatten()), Blobs(**settings(**other))) != of_protonet


def test_is_another_for_other_data_under_the_same_settings(of_protonet: str) -> None:
    assert digest(ProtoNet(nn.Flatten()), OtherBlobs(**settings())) != of_protonet


def test_every_example_its_label_its_side_and_its_episode_count() -> None:
    tasks = random_episodes()
    tasks = tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, tasks)  # as data are
    (sx, sy), (qx, qy) = tasks
    same = [
        Episode(Batch(sx.flip(1), sy.flip(1)), Batch(qx.flip(1), qy.flip(1))),
        tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks),
    ]
    others = [
        Episode(Batch(sx, sy.flip(1)), tasks.query),
        Episode(tasks.support, Batch(qx, (qy + 1) % 3)),
        Episode(tasks.query, tasks.support),
        Episode(Batch(torch.cat([sx[:, :1], sx[:, :-1]], 1), sy), tasks.query),
        Episode(Batch(sx.mT, sy), tasks.query),
        Episode(Batch(sx.flatten(2), sy), tasks.query),
    ]
    found = task_digests(tasks)
    assert all(task_digests(one) == found for one in same)
    for one in others:
        assert not set(task_digests(one)) & set(found)
    by_id = dict(enumerate(found))
    assert list_digest(by_id) == list_digest(dict(reversed(by_id.items())))
    exchanged = {0: found[1], 1: found[0], 2: found[2]}
    assert len({list_digest(one) for one in (by_id, exchanged, {i + 1: d for i, d in by_id.items()})}) == 3


def test_tasks_that_are_no_episodes_have_one_too() -> None:
    data = dict(unroll_steps=4, truncation=2, test_episodes=5, eval_meta_batch_size=2)
    first, again, other = (
        digest(LSTMOptimizer(hidden=4), QuadraticOptimizees(3, **(data | change)))
        for change in ({}, {"eval_meta_batch_size": 5}, {"seed": 1})
    )
    assert first == again != other
