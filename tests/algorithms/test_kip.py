"""KIP and its kernels: against a wide network, finite differences, and linear algebra; and what it learns."""

from itertools import pairwise
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.func import jacrev

from lightning_meta.algorithms import KIP
from lightning_meta.core import Batch
from lightning_meta.core.kernels import fc_ntk, rbf, ridge_coefficients
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import held_out
from tests.conftest import SIZE

KERNELS = {"fc_ntk": fc_ntk, "rbf": rbf}


def images(count: int, width: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kip(**settings: Any) -> KIP:
    return KIP(**(dict(in_shape=(1, SIZE, SIZE), n_classes=4, per_class=2) | settings))


@pytest.mark.parametrize("hidden", [1, 2])
def test_the_tangent_kernel_is_that_of_a_wide_network(hidden: int) -> None:
    """The product of gradients with respect to all weights, in the mean over networks drawn as the kernel says."""
    width, x, draws = 800, images(4), 12
    generator = torch.Generator().manual_seed(1)
    sizes = [7, *[width] * hidden, 1]
    shapes = {
        f"{i}.{part}": shape for i, (a, b) in enumerate(pairwise(sizes)) for part, shape in (("w", (b, a)), ("b", (b,)))
    }

    def network(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        for i in range(len(sizes) - 1):
            fan_in = x.shape[-1]
            x = (2 / fan_in) ** 0.5 * x @ weights[f"{i}.w"].T + 0.1 * weights[f"{i}.b"]
            x = x.relu() if i < len(sizes) - 2 else x
        return x[:, 0]

    empirical = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(draws):
        weights = {
            name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
        }
        gradients = [g.flatten(1) for g in jacrev(network)(weights, x).values()]
        empirical += sum(g @ g.T for g in gradients) / draws
    torch.testing.assert_close(fc_ntk(x, x, hidden), empirical, rtol=0.05, atol=0.0)
    torch.testing.assert_close(fc_ntk(x, x.clone(), hidden), fc_ntk(x, x, hidden), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    """With the diagonal, where the slope of arccos is infinite."""
    target, weights, x = images(5, seed=1), images(5, 3, seed=2), images(6)
    labels = images(6, 3, seed=3)

    def loss(x: Tensor) -> Tensor:
        kernel = KERNELS[name]
        return (kernel(target, x) @ ridge_coefficients(kernel(x, x), labels, 0.01) * weights).sum()

    assert torch.autograd.gradcheck(loss, x.requires_grad_(), eps=1e-6, atol=1e-6)
    assert torch.autograd.grad(loss(x), x)[0].isfinite().all()


def test_predictions_are_kernel_ridge_regression() -> None:
    """By an explicit inverse."""
    module = kip(ridge=0.1).double()
    x = torch.rand(5, 1, SIZE, SIZE).double()
    learned = module.images.detach().flatten(1)
    kernel = fc_ntk(learned, learned)
    inverse = torch.linalg.inv(kernel + 0.1 * kernel.trace() / 8 * torch.eye(8).double())
    expected = fc_ntk(x.flatten(1), learned) @ inverse @ module.labels.detach()
    torch.testing.assert_close(module.predict(x, module.coefficients()).detach(), expected, rtol=1e-9, atol=1e-11)


def test_solved_labels_cannot_be_bettered() -> None:
    """The gradient of the error is zero there, and every change of a label raises it: the error is convex."""
    module = kip(learn="labels", ridge=0.01)
    x, y = torch.rand(40, 1, SIZE, SIZE), torch.arange(40) % 4
    with torch.no_grad():
        module.labels.copy_(module.solved_labels(x, y))
    labels = module.labels.detach().double().requires_grad_()
    coefficients = ridge_coefficients(module.similarity(module.images, module.images).detach(), labels, 0.01)
    error = module.query_loss(coefficients, Batch(x, y)).loss
    (gradient,) = torch.autograd.grad(error, labels)
    assert gradient.abs().max() < 1e-6
    assert module.query_loss(coefficients + 0.1, Batch(x, y)).loss > error


@pytest.mark.parametrize("learn", ["images", "both"])
def test_learned_images_predict_better_than_those_it_began_with(learn: str) -> None:
    torch.manual_seed(0)
    data = held_out(support_per_class=2, held_out_per_class=6, val_per_class=2, test_per_class=2, flip=0.0,
                    test_episodes=2, steps_per_epoch=30)  # fmt: skip
    module = kip(per_class=1, learn=learn, optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=30, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    data.setup("fit")
    module.start_from(data)
    first, query = module.images.detach().clone(), data.all_held_out()
    assert torch.equal(first, data.learned_from().x[::2])
    before = module.query_loss(module.coefficients(), query).loss.item()
    trainer.fit(module, datamodule=data)
    assert module.query_loss(module.coefficients(), query).loss.item() < 0.7 * before
    assert not torch.equal(first, module.images)
    assert torch.equal(module.labels, module.targets(torch.arange(4)).float()) == (learn == "images")


@pytest.mark.parametrize("learn", ["both", "labels"])
def test_without_training_it_is_the_first_images_and_labels_that_are_solved_for(learn: str) -> None:
    """By hand, from the same data; and a test after a training leaves what was learned."""
    data = held_out(support_per_class=2, held_out_per_class=6, val_per_class=2, test_per_class=2, test_episodes=2)
    run = pl.Trainer(accelerator="cpu", inference_mode=False, logger=False, enable_checkpointing=False, max_steps=1,
                     enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    module, by_hand = kip(per_class=1, learn=learn), kip(per_class=1, learn=learn)
    run.test(module, datamodule=data, verbose=False)
    by_hand.start_from(data)
    assert torch.equal(module.images, by_hand.images) and torch.equal(module.labels, by_hand.labels)
    assert torch.equal(module.labels, module.targets(torch.arange(4)).float()) == (learn == "both")
    if learn == "both":
        run.fit(module, datamodule=data)
        learned = module.images.detach().clone()
        run.test(module, datamodule=data, verbose=False)
        assert torch.equal(module.images, learned) and not torch.equal(module.images, by_hand.images)


def test_what_cannot_be_is_told() -> None:
    run = pl.Trainer(accelerator="cpu", inference_mode=False, logger=False, enable_checkpointing=False, max_steps=1,
                     enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    for module, message in (
        (kip(n_classes=3), "set model.n_classes to 4"),
        (
            kip(per_class=9),
            "per_class=9, but class 0 of Blobs has 4 images to learn from; raise data.support_per_class",
        ),
        (kip(in_shape=(1, 8, 8)), r"set model.in_shape to \[1, 16, 16\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.fit(module, datamodule=held_out(flip=0.0, support_per_class=4))
    for settings in ({"truncation": 3}, {"unroll_steps": 5}):
        with pytest.raises(ConfigError, match=r"no inner steps, but data.truncation=.*; set them to 1 and"):
            run.fit(kip(), datamodule=held_out(flip=0.0, **settings))
    with pytest.raises(ConfigError, match="kernel='poly' fc_ntk or rbf"):
        kip(kernel="poly")


BILEVEL: dict[str, Any] = {}  # nothing of it is carried
