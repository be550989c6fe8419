"""Which modules have a map of their embedding, and of what, in real, tiny tests of the Trainer."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.func import functional_call

from lightning_meta.algorithms import ANIL, MAML, Baseline, ProtoNet
from lightning_meta.backbones import MLP, support_statistics
from lightning_meta.callbacks import EmbeddingMap, embedding_map
from lightning_meta.datamodules import Sinusoid
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import EpisodicModule
from tests.conftest import blobs, conv4


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of the pictures that were drawn."""
    calls: list[Any] = []
    draw = embedding_map.embedding_map
    monkeypatch.setattr(embedding_map, "embedding_map", lambda *args: calls.append(args) or draw(*args))
    return calls


def test(folder: Path, module: EpisodicModule, data: EpisodicDataModule) -> list[Path]:
    callback = EmbeddingMap(episode=1)
    pl.Trainer(
        accelerator="cpu", inference_mode=False, logger=CSVLogger(folder, name="", version=""), callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    ).test(module, data, verbose=False)  # fmt: skip
    return callback.paths


test.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
@pytest.mark.parametrize("algorithm", [ProtoNet, Baseline])
def test_draws_the_features_that_are_compared(algorithm: Any, norm: str, drawn: list[Any], tmp_path: Path) -> None:
    module, data = algorithm(conv4(norm)), blobs()
    (path,) = test(tmp_path, module, data)
    assert path == tmp_path / "pictures" / "embedding.png"
    assert path.stat().st_size > 0
    ((support, query, preds, title, names),) = drawn
    tasks = data.dataset("test").__getitems__([1])
    with torch.no_grad():
        statistics = support_statistics(module.backbone, {}, tasks.support.x[0])
        torch.testing.assert_close(support.x, module.backbone(tasks.support.x[0]))
        torch.testing.assert_close(query.x, functional_call(module.backbone, statistics, (tasks.query.x[0],)))
        torch.testing.assert_close(preds, module.eval().play(tasks).preds[0])
    assert support.y.equal(tasks.support.y[0])
    assert query.y.equal(tasks.query.y[0])
    assert title.endswith("test episode 1")
    assert names is None  # of synthetic classes
    assert not module.backbone._forward_hooks


def test_an_embedding_that_is_adapted_or_does_not_exist_is_skipped(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(inner_lr=0.1, inner_steps=2)
    assert not test(tmp_path, MAML(conv4(), n_way=3, **settings), blobs())
    assert test(tmp_path, ANIL(conv4(), n_way=3, **settings), blobs())  # adapts its head alone
    regression = ANIL(MLP(hidden=(4,)), n_way=1, loss_fn=torch.nn.functional.mse_loss, metric=EpisodicMSE())
    assert not test(tmp_path, regression, Sinusoid(test_episodes=2))
