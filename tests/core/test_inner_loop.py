"""The inner loop against closed forms and plain autograd."""

import pytest
import torch
from torch import Tensor

from lightning_meta.core import SGD, Momentum, Progress, follow, take_step, unroll

LR, STEPS = 0.1, 4


def quadratic(dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Positive definite A, support minimum b and start theta, in float64."""
    root = torch.randn(dim, dim, dtype=torch.float64)
    return root @ root.T / dim + torch.eye(dim), torch.randn(dim).double(), torch.randn(dim).double()


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_on_a_quadratic_has_its_closed_form(first_order: bool) -> None:
    """Support loss 1/2 (t-b)'A(t-b), query loss 1/2 |t|^2: phi = b + (I - lr A)^k (theta - b).

    The meta-gradient is (I - lr A)^k phi; first order drops the Jacobian and leaves phi.
    """
    a, b, theta = quadratic()
    theta.requires_grad_()
    phi = unroll(
        lambda p: 0.5 * (p["t"] - b) @ a @ (p["t"] - b), {"t": theta}, SGD(LR), STEPS, first_order=first_order
    )["t"]
    (0.5 * phi @ phi).backward()

    jacobian = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - LR * a, STEPS)
    phi_closed = b + jacobian @ (theta.detach() - b)
    torch.testing.assert_close(phi.detach(), phi_closed, rtol=1e-12, atol=1e-12)
    expected = phi_closed if first_order else jacobian @ phi_closed
    torch.testing.assert_close(theta.grad, expected, rtol=1e-12, atol=1e-12)


def test_zero_steps_return_the_parameters_themselves() -> None:
    theta = {"t": torch.ones(2)}
    assert unroll(lambda p: p["t"].sum(), theta, SGD(LR), 0)["t"] is theta["t"]


def test_trajectory_holds_every_step() -> None:
    a, b, theta = quadratic()

    def loss(p: dict[str, Tensor]) -> Tensor:
        return 0.5 * (p["t"] - b) @ a @ (p["t"] - b)

    path = unroll(loss, {"t": theta}, SGD(LR), STEPS, trajectory=True)
    assert len(path) == STEPS + 1
    for k, params in enumerate(path):
        torch.testing.assert_close(params["t"], unroll(loss, {"t": theta}, SGD(LR), k)["t"])


def test_first_order_records_no_inner_graph() -> None:
    """The gradient through a closed-over parameter of the support loss is dropped as well."""
    scale, theta = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    phi = unroll(lambda p: scale * p["t"] ** 2, {"t": theta}, SGD(LR), 2, first_order=True)["t"]
    phi.backward()
    assert scale.grad is None
    assert theta.grad == 1.0


@pytest.mark.parametrize("first_order", [False, True])
def test_the_loss_of_a_step_has_its_gradient_in_either_order(first_order: bool) -> None:
    a, b, theta = quadratic()
    theta.requires_grad_()
    _, _, loss = take_step(lambda p: (p["t"] - b) @ a @ (p["t"] - b), {"t": theta}, SGD(LR), (), first_order)
    loss.backward()
    torch.testing.assert_close(loss.detach(), (theta - b) @ a @ (theta - b), rtol=1e-12, atol=0)
    torch.testing.assert_close(theta.grad, 2 * a @ (theta - b), rtol=1e-12, atol=0)


@pytest.mark.parametrize("first_order", [False, True])
def test_following_losses_is_unrolling_on_them(first_order: bool) -> None:
    """Cut in two, it is the same path; the last loss judges and moves nothing."""
    a, b, theta = quadratic()
    losses = [lambda p, k=k: (p["t"] - k * b) @ a @ (p["t"] - k * b) for k in range(STEPS + 1)]
    optimizer = Momentum(LR / 4)
    path = unroll(losses[:STEPS], {"t": theta}, optimizer, STEPS, first_order, trajectory=True)
    start = Progress({"t": theta}, optimizer.init({"t": theta}))
    whole, values = follow(losses, start, optimizer, first_order)
    torch.testing.assert_close(whole.params, path[-1], rtol=1e-12, atol=0)
    expected = torch.stack([loss(params) for loss, params in zip(losses, path, strict=True)])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
    halfway, first = follow(losses[:3], start, optimizer, first_order)
    end, second = follow(losses[2:], halfway, optimizer, first_order)
    assert torch.equal(end.params["t"], whole.params["t"])
    assert torch.equal(torch.cat([first[:-1], second]), values)
