"""MetaReg: its penalty, and the gradient of its costs against finite differences and plain autograd."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import FixedWeights, MetaReg
from lightning_meta.backbones import MLP
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch
from lightning_meta.datamodules import Trial
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import held_out, network
from tests.datamodules.test_domains import trials

BILEVEL = {"meta-reg": lambda **kw: MetaReg(network(), 4, start=0.1, **kw)}


def made(**settings: object) -> MetaReg:
    torch.manual_seed(0)
    return MetaReg(network(), 4, **({"start": 0.1} | settings)).double().train()


def trial(truncation: int = 2) -> Trial:
    data = held_out(truncation=truncation)
    data.setup("fit")
    drawn = data.dataset("train").__getitems__([0])
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, drawn)


def loss(module: MetaReg, tasks: Trial) -> torch.Tensor:
    module.carried = None
    return module.measure(tasks)[0]["loss"].mean()


def test_the_gradient_of_the_costs_is_that_of_finite_differences() -> None:
    """Through two steps, whose penalty has a corner at 0 that no weight is near."""
    module, tasks = made(), trial()
    loss(module, tasks).backward()
    found, h = module.raw.grad.clone(), 1e-6
    for place in ((0, 0), (1, 3), (3, 7)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                module.raw[place] += sign * h
                values.append(loss(module, tasks).item())
                module.raw[place] -= sign * h
        assert found[place].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-10)
    assert found.abs().max() > 1e-5


def test_one_step_of_plain_autograd_gives_the_same() -> None:
    """The derivative of one step with respect to a cost is minus the rate times the sign of the weight."""
    module, tasks = made(), trial(truncation=1)
    loss(module, tasks).backward()
    weights = {name: value[0] for name, value in module.begin(tasks).params.items()}
    x, y = tasks.support.x[0, 0], tasks.support.y[0, 0]
    free = {name: value.clone().requires_grad_() for name, value in weights.items()}
    inner = F.cross_entropy(functional_call(module.network, free, (x,)), y)
    inner = inner + (module.costs().detach() * free["head.weight"].abs()).sum()
    slopes = torch.autograd.grad(inner, list(free.values()))
    stepped = {name: (p - 0.1 * g).detach().requires_grad_() for (name, p), g in zip(free.items(), slopes, strict=True)}
    query = F.cross_entropy(functional_call(module.network, stepped, (tasks.query.x[0],)), tasks.query.y[0])
    (gradient,) = torch.autograd.grad(query, stepped["head.weight"])
    expected = -0.1 * weights["head.weight"].sign() * gradient * module.raw.detach().sigmoid()
    torch.testing.assert_close(module.raw.grad, expected, rtol=1e-9, atol=1e-14)


def test_the_penalty_is_of_the_head_alone() -> None:
    module = made(start=0.25)
    weights = {name: torch.ones_like(p) for name, p in module.network.named_parameters()}
    batch = Batch(torch.rand(3, 256).double(), torch.tensor([0, 1, 2]))
    penalty = module.inner_loss(weights, batch) - module.losses(weights, batch).mean()
    assert penalty.item() == pytest.approx(0.25 * 4 * 8)


def test_it_is_trained_across_domains_and_tested_on_another(tmp_path: Path) -> None:
    """As ordinary training is, by the same new trainings: with costs near 0 the two are the same."""
    results = []
    for module in (MetaReg(MLP(64, [16]), 4, start=1e-12), FixedWeights(MLP(64, [16]), 4)):
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=2, inference_mode=False, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        )  # fmt: skip
        data = trials(steps_per_epoch=2, val_episodes=2, test_episodes=3)
        trainer.fit(module, datamodule=data)
        (tested,) = trainer.test(module, datamodule=data, verbose=False)
        results.append(tested["test/loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_cost_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigError, match="start=0 must be positive"):
        made(start=0)
