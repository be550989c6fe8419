"""Mixed precision: adaptation stays in fp32, and by how much the meta-gradient is turned."""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import MAML
from lightning_meta.benchmark.precision import PrecisionGap, meta_gradient
from lightning_meta.core import Episode
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
