"""Functional inner optimizers against those of torch."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lightning_meta.core import SGD, Adam, InnerOptimizer, Momentum, RMSprop, unroll

STEPS = 6


def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
    """Its gradient changes its sign and its size along the way, and is zero for the last element of `b`."""
    return params["a"].sin().sum() * params["b"][0] + (params["a"] ** 4).sum()


def start() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "b": torch.randn(2, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999), (0.5, 0.6)])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_adam_takes_the_steps_of_torch(betas: tuple[float, float], eps: float) -> None:
    assert_same_path(Adam(0.1, betas, eps), partial(torch.optim.Adam, lr=0.1, betas=betas, eps=eps))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_takes_the_steps_of_torch(momentum: float, nesterov: bool) -> None:
    ours = Momentum(0.02, momentum, nesterov) if momentum else SGD(0.02)
    assert_same_path(ours, partial(torch.optim.SGD, lr=0.02, momentum=momentum, nesterov=nesterov and momentum > 0))


@pytest.mark.parametrize("alpha", [0.99, 0.5])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_rmsprop_takes_the_steps_of_torch(alpha: float, eps: float) -> None:
    assert_same_path(RMSprop(0.02, alpha, eps), partial(torch.optim.RMSprop, lr=0.02, alpha=alpha, eps=eps))


def assert_same_path(ours: InnerOptimizer, theirs: Callable[..., torch.optim.Optimizer]) -> None:
    path = unroll(loss, start(), ours, STEPS, trajectory=True)
    params = {name: value.clone().requires_grad_() for name, value in start().items()}
    optimizer = theirs(params.values())
    for expected in path[1:]:
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
        for name, value in params.items():
            torch.testing.assert_close(expected[name], value.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", [Adam(0.1), RMSprop(0.02), Momentum(0.02, nesterov=True)], ids=repr)
def test_meta_gradient_equals_finite_differences(optimizer: InnerOptimizer) -> None:
    """Elements without a gradient (the last of `b`) must not turn it into NaN."""

    def end(theta: torch.Tensor) -> torch.Tensor:
        phi = unroll(loss, {"a": theta, "b": start()["b"]}, optimizer, STEPS)
        return phi["a"].square().sum() + phi["b"].sum()

    assert torch.autograd.gradcheck(end, start()["a"].requires_grad_())
    theta = {name: value.requires_grad_() for name, value in start().items()}
    sum(value.sum() for value in unroll(loss, theta, optimizer, STEPS).values()).backward()
    assert theta["b"].grad[1] == 1.0


def test_the_command_line_can_tell_an_inner_optimizer() -> None:
    assert issubclass(Adam, InnerOptimizer)
    assert not issubclass(torch.optim.Adam, InnerOptimizer)


@pytest.mark.parametrize("first_order", [False, True])
def test_each_step_may_have_a_loss_of_its_own(first_order: bool) -> None:
    """Averages over the whole path show in Adam's state, so the steps must come from one loop."""
    losses = [lambda p: p["t"] ** 2, lambda p: (p["t"] - 3).abs(), lambda p: p["t"].exp()]
    phi = unroll(losses, {"t": torch.tensor(1.0).double()}, Adam(0.1), 3, first_order)["t"]
    t = torch.tensor(1.0).double().requires_grad_()
    optimizer = torch.optim.Adam([t], lr=0.1)
    for step_loss in losses:
        optimizer.zero_grad()
        step_loss({"t": t}).backward()
        optimizer.step()
    torch.testing.assert_close(phi, t.detach(), rtol=1e-12, atol=0)


def test_as_many_losses_as_steps() -> None:
    with pytest.raises(ValueError, match="zip"):
        unroll([loss, loss], start(), Adam(0.1), 3)
