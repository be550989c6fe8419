"""DARTS: its gradient by hand, and which cell it finds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import DARTS
from lightning_meta.core import FirstOrder, Unrolled
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import cell, held_out, network, trainer, trial_of

BILEVEL = {
    "darts": lambda **kw: DARTS(cell(), 4, **kw),
    "darts-unrolled": lambda **kw: DARTS(cell(), 4, **({"hypergradient": Unrolled()} | kw)),
}


@pytest.mark.parametrize("rule", [Unrolled(), FirstOrder()], ids=["second order", "first order"])
def test_the_gradient_is_that_of_a_step_taken_by_hand(rule: Any) -> None:
    """The softmax by hand, an inner step by plain autograd, and the held-out loss of where it leads."""
    torch.manual_seed(0)
    module = DARTS(cell(), 4, hypergradient=rule).double().train()
    with torch.no_grad():
        module.alphas_EO += torch.randn_like(module.alphas_EO)
    trial = trial_of(held_out(), [0])
    weights = {name: value[0].requires_grad_() for name, value in module.begin(trial).params.items()}
    alphas = module.alphas_EO.detach().clone().requires_grad_()
    mixture = alphas.exp() / alphas.exp().sum(1, keepdim=True)

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = functional_call(module.network, weights | {"backbone.mixture_EO": mixture}, (x,))
        return F.cross_entropy(logits, y)

    inner = loss(weights, trial.support.x[0, 0], trial.support.y[0, 0])
    slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True, materialize_grads=True)
    stepped = {name: value - 0.1 * slope for (name, value), slope in zip(weights.items(), slopes, strict=True)}
    if isinstance(rule, FirstOrder):
        stepped = {name: value.detach() for name, value in stepped.items()}
    (expected,) = torch.autograd.grad(loss(stepped, trial.query.x[0], trial.query.y[0]), alphas)
    module.measure(trial)[0]["loss"].sum().backward()
    torch.testing.assert_close(module.alphas_EO.grad, expected, rtol=1e-9, atol=1e-12)


def test_the_most_likely_cell_within_the_budget_is_found() -> None:
    """The strongest operations of all edges would be two 3 x 3 convolutions, of which the budget has one."""
    module = DARTS(cell(), 4)
    names = module.cell.operations
    with torch.no_grad():
        module.alphas_EO.zero_()
        for edge, name, value in ((0, "conv3", 2.0), (0, "pool", 1.5), (1, "conv3", 3.0), (2, "identity", 1.0)):
            module.alphas_EO[edge, names.index(name)] = value
    assert module.cell.named(module.chosen()) == "pool|conv3|identity"
    torch.testing.assert_close(module.eval().mixture(), module.cell.one_hot(module.chosen()))
    torch.testing.assert_close(module.train().mixture(), module.alphas_EO.softmax(1))


def test_the_path_of_the_search_goes_on_after_a_resume(tmp_path: Path) -> None:
    paths = []
    for steps, ckpt in ((3, None), (6, tmp_path / "half.ckpt"), (6, None)):
        torch.manual_seed(0)
        module = DARTS(cell(), 4)
        run = trainer(max_steps=steps, default_root_dir=tmp_path, enable_checkpointing=False, log_every_n_steps=1)
        run.fit(module, datamodule=held_out(), ckpt_path=ckpt)
        if steps == 3:
            run.save_checkpoint(tmp_path / "half.ckpt")
        assert {"train/entropy", "train/parameters"} <= run.logged_metrics.keys()
        paths.append(torch.stack(module.path))
    assert [len(path) for path in paths] == [3, 6, 6]
    assert torch.equal(paths[1], paths[2]) and torch.equal(paths[0], paths[2][:3])


def test_other_networks_are_refused() -> None:
    for backbone in (network(), cell(cell=["conv1", "zero", "pool"])):
        with pytest.raises(ConfigError, match=r"DARTS searches among the cells of a Cell .* take backbone: Cell"):
            DARTS(backbone, 4)
