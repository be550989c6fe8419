"""On a CUDA device: the same meta-gradient as on the CPU, and a fit with the data on the device."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.core import Episode
from lightning_meta.modules import EpisodicModule
from tests.conftest import blobs, conv4, meta_gradient

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("make", [lambda: MAML(conv4(), n_way=3, inner_lr=0.1), lambda: ProtoNet(conv4())])
def test_meta_gradient_equals_the_cpus(make, mode: str, episodes: Episode) -> None:
    module: EpisodicModule = make().double()
    module.task_mode = mode
    expected = meta_gradient(module, episodes)
    on_gpu = meta_gradient(module.cuda(), tree_map(lambda leaf: leaf.cuda(), episodes))
    torch.testing.assert_close({name: g.cpu() for name, g in on_gpu.items()}, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 0.03), ("bf16-mixed", 0.15)])
def test_fit_and_test_with_the_data_on_the_device(precision: str, tolerance: float, tmp_path: Path) -> None:
    """The tested accuracy is what the CPU finds with the same weights, up to flips of near ties."""
    trainer = pl.Trainer(
        max_epochs=1, accelerator="gpu", devices=1, precision=precision, inference_mode=False, logger=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module, data = MAML(conv4(), n_way=3, inner_lr=0.1), blobs(on_device=True)
    trainer.fit(module, datamodule=data)
    assert data.dataset("train")[0].support.x.is_cuda
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    on_cpu = blobs()
    on_cpu.setup("test")
    tasks = on_cpu.dataset("test").__getitems__(range(7))
    accuracy = module.cpu().eval().metric.per_episode(module.play(tasks).preds, tasks.query.y).mean().item()
    assert result["test/acc"] == pytest.approx(accuracy, abs=tolerance)
