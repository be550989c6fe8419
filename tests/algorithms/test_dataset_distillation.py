"""Dataset distillation: its gradient against a loop of torch, first weights, and what it takes from a checkpoint."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import KIP, DatasetDistillation
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import first_trials, held_out, network, outer_gradient
from tests.conftest import SIZE
from tests.modules.test_episodic import trainer

NEEDS = {"DatasetDistillation": dict(truncation=2, unroll_steps=2, evaluate="retrained")}
SHORT = dict(truncation=3, unroll_steps=3, evaluate="retrained", batch_size=1, meta_batch_size=2)
IMAGES = (1, SIZE, SIZE)
BILEVEL = {
    "dataset-distillation": lambda **kw: DatasetDistillation(network(), 4, IMAGES, **kw),
    "dataset-distillation-fixed": lambda **kw: DatasetDistillation(network(), 4, IMAGES, initialisation="fixed", **kw),
}


def test_the_gradient_is_that_of_plain_autograd() -> None:
    """Of pixels and step size, through three steps of a loop with `create_graph`, in the mean over two networks."""
    torch.manual_seed(0)
    module = DatasetDistillation(network(), 4, IMAGES, per_class=2, inner_lr=0.3).double().train()
    trial = first_trials(held_out(**SHORT))
    found = outer_gradient(module, trial)

    images = module.images.detach().clone().requires_grad_()
    rate = module.log_rate.detach().exp().requires_grad_()
    labels, losses = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), []
    for t in range(2):
        weights = {name: value[t].clone().requires_grad_() for name, value in module.begin(trial).params.items()}
        for _ in range(3):
            loss = F.cross_entropy(functional_call(module.network, weights, (images,)), labels)
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: w - rate * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        losses.append(F.cross_entropy(functional_call(module.network, weights, (trial.query.x[t],)), trial.query.y[t]))
    pixels, of_rate = torch.autograd.grad(torch.stack(losses).mean(), (images, rate))
    torch.testing.assert_close(found["images"], pixels, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["log_rate"], (rate * of_rate).detach(), rtol=1e-9, atol=1e-12)


def test_first_weights_are_random_or_fixed() -> None:
    trial = first_trials(held_out(**SHORT))
    for name, same in (("dataset-distillation", False), ("dataset-distillation-fixed", True)):
        weights = BILEVEL[name]().begin(trial).params["head.weight"]
        assert torch.equal(weights[0], weights[1]) == same


def test_learned_images_train_better_than_real_ones(tmp_path: Path) -> None:
    """Those of 60 outer updates against those that they began as; nothing is left of a training after its update."""
    losses = {}
    for learn in (True, False):
        torch.manual_seed(0)
        module = DatasetDistillation(
            network(), 4, IMAGES, inner_lr=0.1, learn=learn, optimizer=partial(torch.optim.Adam, lr=0.02)
        )
        data = held_out(**(SHORT | dict(held_out_per_class=4, support_per_class=3, flip=0.0)))
        run = trainer(max_steps=60, enable_checkpointing=False, limit_val_batches=0, default_root_dir=tmp_path)
        run.fit(module, datamodule=data)
        assert module.carried is None
        assert torch.equal(module.images, data.first_of_each_class(1, IMAGES)) != learn
        (tested,) = run.test(module, datamodule=data, verbose=False)
        losses[learn] = tested["test/loss"]
    assert losses[True] < 0.8 * losses[False]


def test_it_learns_from_the_images_of_a_checkpoint(tmp_path: Path) -> None:
    """Those that KIP has learned, which then train a network."""
    quick = dict(max_steps=2, limit_val_batches=0, default_root_dir=tmp_path)
    kip = KIP(in_shape=IMAGES, n_classes=4, per_class=2, learn="images")
    run = trainer(**quick)
    run.fit(kip, datamodule=held_out(flip=0.0))
    run.save_checkpoint(path := tmp_path / "kip.ckpt")
    module = DatasetDistillation(network(), 4, IMAGES, per_class=2, images=str(path), learn=False)
    trainer(**quick).fit(module, datamodule=held_out(**SHORT))
    assert torch.equal(module.images, kip.images)

    for images, per_class, message in (
        (path, 1, r"images of .*kip.ckpt are \[8, 1, 16, 16\], but per_class=1 images of n_classes=4 are \[4, 1"),
        (tmp_path / "none.ckpt", 1, "none.ckpt is no checkpoint that has learned images"),
    ):
        module = DatasetDistillation(network(), 4, IMAGES, per_class=per_class, images=str(images))
        with pytest.raises(ConfigError, match=message):
            trainer(**quick).fit(module, datamodule=held_out(**SHORT))


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match=r"set data.evaluate to retrained"):
        trainer().fit(BILEVEL["dataset-distillation"](), datamodule=held_out())
    with pytest.raises(ConfigError, match="initialisation='zero' must be random or fixed"):
        DatasetDistillation(network(), 4, initialisation="zero")  # type: ignore[arg-type]
