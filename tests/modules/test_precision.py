"""Precision: metrics are float64 under all of them; mixed: adaptation stays in fp32, and by how much the meta-gradient
is turned.
"""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import LEO, MAML, Baseline, ProtoNet, RelationNet, Siamese
from lightning_meta.backbones import MLP
from lightning_meta.benchmark.precision import PrecisionGap, meta_gradient
from lightning_meta.callbacks import EpisodeTable, RunSummary
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EmbeddingModule
from lightning_meta.reports import Calibration
from tests.conftest import blobs, conv4


@pytest.fixture
def tasks(episodes: Episode) -> Episode:
    return tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, episodes)


def maml(**overrides) -> MAML:
    """In a loop: under vmap on a CPU, autocast leaves convolutions in fp32."""
    torch.manual_seed(0)
    return MAML(conv4(), n_way=3, inner_lr=0.1, inner_steps=2, task_mode="loop", **overrides)


def test_adaptation_is_in_fp32_under_mixed_precision(tasks: Episode) -> None:
    expected = maml().adapt_tasks(tasks.support)
    with torch.autocast("cpu", torch.bfloat16):
        exact, rounded = (maml(adapt_in_fp32=on).adapt_tasks(tasks.support) for on in (True, False))
        assert maml().play(tasks).preds.dtype == torch.bfloat16  # the query set is not
    torch.testing.assert_close(exact, expected, rtol=0, atol=0)
    assert any(not torch.equal(rounded[name], value) for name, value in expected.items())


def test_the_meta_gradient_is_closer_to_that_of_fp32_than_with_adaptation_in_bf16(tasks: Episode) -> None:
    def cosine(module: MAML) -> float:
        module.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", inference_mode=False)
        exact, rounded = (meta_gradient(module, tasks, precision) for precision in ("32-true", "bf16-mixed"))
        return F.cosine_similarity(exact, rounded, dim=0).item()

    assert 0.99 < cosine(maml()) < 1
    assert cosine(maml(adapt_in_fp32=False)) < cosine(maml())


def test_the_gap_is_measured_before_the_first_step_and_after_training(tmp_path) -> None:
    gap = PrecisionGap()
    trainer = pl.Trainer(
        max_steps=21, accelerator="cpu", inference_mode=False, callbacks=[gap], logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(maml(), datamodule=blobs(steps_per_epoch=21))
    assert len(gap.rows) == 2
    assert all(0.9 < cosine < 1 and 0.8 < ratio < 1.25 for cosine, ratio in gap.rows)
    assert gap.rows[0] != gap.rows[1]


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float16),
        nn.Module.bfloat16,
        nn.Module.half,
        nn.Module.float,
        lambda module: module[0].set_dtype(torch.bfloat16),
    ],
)
def test_the_sums_of_a_metric_stay_exact_whatever_its_module_is_converted_to(convert: Callable) -> None:
    """Before, between and after episodes. In bfloat16 256 + 1 is 256, and a third has 8 bits."""
    metric = EpisodicAccuracy()
    module = nn.ModuleList([metric, nn.Linear(1, 1)])
    for _ in range(2):
        convert(module)
        metric.update(torch.full((300,), 1 / 3, dtype=torch.float64))
    convert(module)
    mean, ci95 = metric.compute()
    assert mean.dtype == torch.float64
    assert mean.item() == pytest.approx(1 / 3, rel=1e-14)
    assert ci95.item() == pytest.approx(0, abs=1e-8)
    metric.reset()
    assert {getattr(metric, state).dtype for state in ("total", "total_of_squares", "count")} == {torch.float64}


@pytest.mark.parametrize("algorithm", [Baseline, partial(LEO, n_way=3), Siamese, RelationNet])
def test_weights_of_a_head_are_not_rounded(algorithm: Callable[..., EmbeddingModule]) -> None:
    """They meet features in fp32, which torch would not multiply with them."""
    trainer = pl.Trainer(precision="bf16-true", accelerator="cpu", inference_mode=False, logger=False, max_steps=1)
    with pytest.raises(ConfigError, match=r"precision=bf16-true .* use bf16-mixed"):
        trainer.fit(algorithm(conv4()), datamodule=blobs())


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_the_result_is_the_mean_of_the_episodes_in_the_table(precision: str, tmp_path: Path) -> None:
    callbacks = [EpisodeTable(), Calibration(), RunSummary()]
    trainer = pl.Trainer(
        precision=precision, accelerator="cpu", inference_mode=False, logger=CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False, enable_progress_bar=False, callbacks=callbacks,
    )  # fmt: skip
    data = blobs(test_episodes=700, eval_meta_batch_size=100, n_query=5)
    trainer.test(ProtoNet(MLP(in_features=256, hidden=(4,))), datamodule=data, verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    with (tmp_path / "test_episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["episodes"] == 700
    accuracies, losses = ([float(row[name]) for row in rows] for name in ("acc", "loss"))
    assert 0.3 < result["acc"] < 0.99
    assert result["acc"] == pytest.approx(fmean(accuracies), rel=1e-12)
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(fmean(losses), rel=1e-12)
    assert len(set(accuracies)) > 3
