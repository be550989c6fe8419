"""A compiled training step is the same training."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo import lookup_backend
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, LSTMOptimizer
from lightning_meta.backbones import MLP
from lightning_meta.datamodules import QuadraticOptimizees, Sinusoid
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import MetaModule
from tests.algorithms.cases import ALGORITHMS, VARIANTS
from tests.conftest import Make, random_episodes

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
# Older ones trace in parts what they do not know (2.7: `dict | dict`, 2.11: a TorchFunctionMode): slower, not wrong.
OTHERS = {name: make for name, make in (ALGORITHMS | VARIANTS).items() if "imaml" not in name}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those that are compiled: traced with their gradients as always, but run operation by operation.

    That takes seconds where the compiler takes a minute.
    """
    seen: list[Any] = []

    def operation_by_operation(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    torch.compiler.reset()  # after some compilations of one function there are no further ones
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=operation_by_operation))
    return seen


def maml(**options: Any) -> MAML:
    return MAML(MLP(hidden=[8]), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE(), **options)


def trained(module: MetaModule, data: pl.LightningDataModule, folder: Path) -> dict[str, torch.Tensor]:
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(
        max_steps=4, accelerator="cpu", precision="64-true", inference_mode=False, default_root_dir=folder, **quiet
    )
    trainer.fit(module, data)
    return module.state_dict()


def assert_trains_the_same(make: Any, data: pl.LightningDataModule, folder: Path) -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        results.append(trained(make(compile_training=compiled), data, folder))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_episodes(graphs: list[Any], tmp_path: Path) -> None:
    data = Sinusoid(k_shot=5, meta_batch_size=3, steps_per_epoch=2, val_episodes=2, test_episodes=2)
    assert_trains_the_same(maml, data, tmp_path)
    assert len(graphs) == 1 or TORCH < (2, 8)


def test_layers_whose_second_derivatives_vmap_gets_wrong(graphs: list[Any], tmp_path: Path) -> None:
    """They are replaced in the graph that is compiled as well, and it is still one."""

    def make(**options: Any) -> MAML:
        network = MLP(hidden=[8])
        network.layers = nn.Sequential(nn.Linear(1, 8), nn.LayerNorm(8), nn.Tanh())
        return MAML(network, n_way=1, inner_lr=0.5, loss_fn=F.mse_loss, metric=EpisodicMSE(), **options)

    data = Sinusoid(k_shot=5, meta_batch_size=3, steps_per_epoch=2, val_episodes=2, test_episodes=2)
    assert_trains_the_same(make, data, tmp_path)
    assert len(graphs) == 1 or TORCH < (2, 12)


@pytest.mark.slow
def test_segments_of_long_optimizations(graphs: list[Any], tmp_path: Path) -> None:
    few = dict(unroll_steps=4, truncation=2, meta_batch_size=3, steps_per_epoch=4, val_episodes=2, test_episodes=2)
    assert_trains_the_same(partial(LSTMOptimizer, hidden=3), QuadraticOptimizees(dimension=3, **few), tmp_path)
    assert graphs


@pytest.mark.slow
@pytest.mark.skipif(TORCH < (2, 12), reason="older ones run by themselves what they cannot trace")
def test_what_cannot_be_compiled_is_refused(graphs: list[Any]) -> None:
    module = ALGORITHMS["imaml"]().double().train()
    module.compile_training = True
    with pytest.raises(ConfigError, match=r"of IMAML cannot be compiled here; set compile_training to false.*vmap"):
        module.training_step(random_episodes(), 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_the_compiler_makes_the_same_of_it(tmp_path: Path) -> None:
    data = Sinusoid(k_shot=5, meta_batch_size=3, steps_per_epoch=2, val_episodes=2, test_episodes=2)
    assert_trains_the_same(maml, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", OTHERS.values(), ids=[*OTHERS])
def test_every_other_algorithm_has_the_same_meta_gradient(make: Make, graphs: list[Any]) -> None:
    torch.manual_seed(0)
    module = make().double().train()
    gradients = []
    for measure in (module.measure, torch.compile(module.measure, dynamic=False)):
        torch.manual_seed(0)
        module.zero_grad()
        measure(random_episodes())[0]["loss"].mean().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)
    assert graphs
