"""Support sets as streams: the order belongs to the episode and tells nothing about labels."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_meta.algorithms import FullContextMatchingNet, ProtoNet
from lightning_meta.core import Batch
from lightning_meta.datamodules.episodes import EpisodeDataset
from lightning_meta.modules.stream import class_after_class
from tests.conftest import Blobs, blobs, conv4


@pytest.fixture
def data() -> Blobs:
    data = blobs()
    data.setup("fit")
    return data


def streamed(data: Blobs, seed: int = 0) -> EpisodeDataset:
    return EpisodeDataset(data.source("train"), data.shapes["train"], seed, "train", support_as_stream=True)


def test_a_stream_has_the_examples_of_the_episode_in_another_order(data: Blobs) -> None:
    plain, stream = data.dataset("train")[3], streamed(data)[3]
    assert torch.equal(stream.query.x, plain.query.x)
    assert not torch.equal(stream.support.y, plain.support.y)
    found = {(x.sum().item(), y.item()) for x, y in zip(*stream.support, strict=True)}
    assert found == {(x.sum().item(), y.item()) for x, y in zip(*plain.support, strict=True)}


def test_order_is_a_function_of_seed_and_episode_and_every_place_has_every_label_equally_often(data: Blobs) -> None:
    ids = range(600)
    labels = streamed(data).__getitems__(ids).support.y
    assert torch.equal(labels[[7, 400]], streamed(data).__getitems__([7, 400]).support.y)
    assert not torch.equal(labels, streamed(data, seed=1).__getitems__(ids).support.y)
    shares = torch.stack([(labels == label).double().mean(0) for label in range(3)])
    assert (shares - 1 / 3).abs().max() < 0.08  # four standard errors of 600 episodes


def test_an_algorithm_needs_streams_and_the_next_one_gets_ordinary_episodes() -> None:
    data = blobs()
    trainer = pl.Trainer(
        fast_dev_run=1, accelerator="cpu", inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.test(FullContextMatchingNet(conv4(), processing_steps=1), datamodule=data, verbose=False)
    assert data.dataset("test").support_as_stream
    trainer.test(ProtoNet(conv4()), datamodule=data, verbose=False)
    assert not data.dataset("test").support_as_stream


def test_classes_in_turn_are_in_the_order_in_which_they_were_seen_last_and_their_examples_as_they_came() -> None:
    stream = Batch(torch.arange(7), torch.tensor([1, 0, 2, 2, 1, 0, 1]))
    found = class_after_class(stream)
    assert found.x.tolist() == [2, 3, 1, 5, 0, 4, 6]
    assert found.y.tolist() == [2, 2, 0, 0, 1, 1, 1]
    mapped = torch.vmap(class_after_class)(Batch(*(torch.stack([leaf, leaf.flip(0)]) for leaf in stream)))
    assert mapped.x[0].tolist() == found.x.tolist()
    assert mapped.y[1].tolist() == [2, 2, 0, 0, 1, 1, 1] and mapped.x[1].tolist() == [3, 2, 5, 1, 6, 4, 0]
