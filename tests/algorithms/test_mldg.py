"""MLDG: its loss and gradient are the paper's formula, and ordinary training where nothing is stepped or weighed."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import MLDG
from lightning_meta.backbones import MLP
from lightning_meta.core import Episode
from lightning_meta.datamodules import Domains, Rotations
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make, blobs, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {"mldg": lambda: MLDG(conv4(), n_way=3, inner_lr=0.1)}
VARIANTS: dict[str, Make] = {"mldg-two-steps": lambda: MLDG(conv4(), n_way=3, inner_lr=0.1, inner_steps=2, beta=0.5)}


def made(**settings: object) -> MLDG:
    torch.manual_seed(0)
    backbone = MLP(SIZE * SIZE, [8], activation="tanh")
    return MLDG(backbone, **({"n_way": 3, "inner_lr": 0.3, "beta": 0.7} | settings)).double().train()


def by_hand(module: MLDG, tasks: Episode, rate: float, beta: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean over tasks of `F(theta) + beta G(theta - rate F'(theta))`, the network written out, and its gradient."""
    theta = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    names = [*theta]

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2 = (weights[name] for name in names)
        return F.cross_entropy((x.flatten(1) @ w1.T + b1).tanh() @ w2.T + b2, y)

    losses = []
    for sx, sy, qx, qy in zip(*tasks.support, *tasks.query, strict=True):
        before = loss(theta, sx, sy)
        slopes = torch.autograd.grad(before, list(theta.values()), create_graph=True)
        stepped = {name: p - rate * slope for (name, p), slope in zip(theta.items(), slopes, strict=True)}
        losses.append(before + beta * loss(stepped, qx, qy))
    total = torch.stack(losses).mean()
    return total, dict(zip(names, torch.autograd.grad(total, list(theta.values())), strict=True))


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_it_descends_on_the_papers_formula(mode: str) -> None:
    module, tasks = made(task_mode=mode), random_episodes()
    loss, gradient = by_hand(module, tasks, 0.3, 0.7)
    torch.testing.assert_close(module.play(tasks).loss.mean(), loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(meta_gradient(module, tasks), gradient, rtol=1e-9, atol=1e-12)


def test_without_a_step_it_is_ordinary_training_on_all_domains() -> None:
    module, tasks = made(inner_lr=0.0, beta=1.0), random_episodes()
    module.zero_grad()
    both = [
        F.cross_entropy(module.learner(x.flatten(0, 1)), y.flatten())
        for x, y in (tasks.support, tasks.query)
    ]  # fmt: skip
    sum(both).backward()
    expected = {name: p.grad.clone() for name, p in module.named_parameters()}
    torch.testing.assert_close(meta_gradient(module, tasks), expected, rtol=1e-9, atol=1e-12)


def test_without_a_weight_it_is_ordinary_training_on_the_support_sets() -> None:
    module, tasks = made(beta=0.0), random_episodes()
    module.zero_grad()
    F.cross_entropy(module.learner(tasks.support.x.flatten(0, 1)), tasks.support.y.flatten()).backward()
    expected = {name: p.grad.clone() for name, p in module.named_parameters()}
    torch.testing.assert_close(meta_gradient(module, tasks), expected, rtol=1e-9, atol=1e-12)


def test_evaluation_does_not_adapt() -> None:
    """Whatever the support set, predictions and loss are those of the weights as they are."""
    module, tasks = made().eval(), random_episodes()
    out = module.play(tasks)
    torch.testing.assert_close(out.preds, module.learner(tasks.query.x.flatten(0, 1)).view_as(out.preds))
    expected = F.cross_entropy(out.preds.flatten(0, 1), tasks.query.y.flatten(), reduction="none").view(3, -1).mean(1)
    torch.testing.assert_close(out.loss, expected)


def test_it_is_trained_and_tested_on_domains(tmp_path: Path) -> None:
    """Noisy patterns, turned by a few degrees: other images of the seen domains are named, far above one in twelve."""
    torch.manual_seed(0)
    module = MLDG(MLP(SIZE * SIZE, [32]), 12, inner_lr=0.1, optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    rotations = Rotations(blobs(), (0, 5, 10), (15,), train_per_class=2, val_per_class=1, test_per_class=2)
    settings = dict(n_way=12, k_shot=2, n_query=1, meta_batch_size=2, val_episodes=3, test_episodes=3)
    data = Domains(rotations, steps_per_epoch=60, **settings)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=60, inference_mode=False, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/acc"] > 0.5
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert tested["test/acc"] > 0.25


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="beta=-1 must not be negative"):
        made(beta=-1)
