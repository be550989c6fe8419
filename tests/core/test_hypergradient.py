"""Conjugate gradients and implicit derivatives against dense linear algebra."""

import pytest
import torch
from torch import Tensor

from lightning_meta.core import Batch, conjugate_gradient, implicit_minimiser

DIM = 5


def positive_definite(dtype: torch.dtype = torch.float64) -> Tensor:
    root = torch.randn(DIM, DIM, dtype=dtype)
    return root @ root.T / DIM + torch.eye(DIM, dtype=dtype)


def split(vector: Tensor) -> dict[str, Tensor]:
    """A vector as parameters of two names."""
    return {"a": vector[:2], "b": vector[2:].reshape(3, 1)}


def join(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([params["a"], params["b"].flatten()])


def solve(matrix: Tensor, b: Tensor, steps: int) -> Tensor:
    return join(conjugate_gradient(lambda v: split(matrix @ join(v)), split(b), steps))


def test_as_many_steps_as_dimensions_solve_the_system() -> None:
    matrix, b = positive_definite(), torch.randn(DIM).double()
    torch.testing.assert_close(solve(matrix, b, DIM), torch.linalg.solve(matrix, b), rtol=1e-10, atol=1e-12)


def test_k_steps_minimise_the_error_over_the_krylov_space() -> None:
    """In the norm of the matrix, over the span of b, Ab, ..., A^(k-1) b: the method's defining property."""
    matrix, b = positive_definite(), torch.randn(DIM).double()
    for k in range(1, DIM):
        krylov = torch.stack([torch.linalg.matrix_power(matrix, i) @ b for i in range(k)], dim=1)
        best = krylov @ torch.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
        torch.testing.assert_close(solve(matrix, b, k), best, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_after_convergence_change_nothing(dtype: torch.dtype) -> None:
    """No division of zero by zero, also where it has converged at once (a multiple of the identity) or b is zero."""
    matrix, b = positive_definite(dtype), torch.randn(DIM, dtype=dtype)
    torch.testing.assert_close(solve(matrix, b, 200), torch.linalg.solve(matrix, b))
    torch.testing.assert_close(solve(2 * torch.eye(DIM, dtype=dtype), b, 200), b / 2)
    assert torch.equal(solve(matrix, torch.zeros(DIM, dtype=dtype), 3), torch.zeros(DIM, dtype=dtype))


def test_non_positive_curvature_ends_it() -> None:
    b = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).double()
    assert torch.equal(solve(torch.diag(torch.tensor([1.0, -1.0, 1, 1, 1]).double()), b, 4), b)  # b'Ab = 0
    assert torch.equal(solve(-torch.eye(DIM).double(), b, 4), b)
    matrix = torch.diag(torch.tensor([4.0, -1.0, 1, 1, 1]).double())  # met in the second step
    assert torch.equal(solve(matrix, b, 4), solve(matrix, b, 1))
    assert not torch.equal(solve(matrix, b, 1), b)


def test_under_vmap_each_system_is_solved_as_if_alone() -> None:
    """One converges at once, one meets negative curvature, one needs all steps."""
    matrices = torch.stack([torch.eye(DIM).double(), -torch.eye(DIM).double(), positive_definite()])
    b = torch.randn(3, DIM).double()
    together = torch.vmap(lambda m, v: solve(m, v, DIM))(matrices, b)
    alone = torch.stack([solve(m, v, DIM) for m, v in zip(matrices, b, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def quartic(params: dict[str, Tensor], batch: Batch) -> Tensor:
    """Convex, with a Hessian that depends on the parameters and on the data."""
    return (batch.x @ join(params) - batch.y).square().sum() + (join(params) ** 4).sum()


@pytest.mark.parametrize("damping", [0.0, 1.5])
def test_gradient_is_the_inverse_of_the_proximal_hessian(damping: float) -> None:
    theta, phi, weights = (torch.randn(DIM).double() for _ in range(3))
    batch = Batch(torch.randn(4, DIM).double(), torch.randn(4).double())
    theta.requires_grad_()
    out = implicit_minimiser(quartic, split(phi), split(theta), batch, 2.0, DIM, damping)
    assert torch.equal(join(out), phi)
    (join(out) @ weights).backward()
    hessian = torch.autograd.functional.hessian(lambda p: quartic(split(p), batch), phi)
    expected = torch.linalg.solve(torch.eye(DIM) + hessian / (2.0 + damping), weights)
    torch.testing.assert_close(theta.grad, expected, rtol=1e-9, atol=1e-12)


def test_derivative_is_that_of_the_true_minimiser() -> None:
    """By central differences of a minimum found to machine precision (Newton's method)."""
    theta, weights, strength = torch.randn(DIM).double(), torch.randn(DIM).double(), 3.0
    batch = Batch(torch.randn(4, DIM).double(), torch.randn(4).double())

    def minimise(theta: Tensor) -> Tensor:
        def objective(p: Tensor) -> Tensor:
            return quartic(split(p), batch) + strength / 2 * (p - theta).square().sum()

        phi = theta.clone()
        for _ in range(30):
            hessian = torch.autograd.functional.hessian(objective, phi)
            phi = phi - torch.linalg.solve(hessian, torch.autograd.functional.jacobian(objective, phi))
        return phi

    start = theta.clone().requires_grad_()
    phi = implicit_minimiser(quartic, split(minimise(theta)), split(start), batch, strength, DIM)
    (join(phi) @ weights).backward()
    h = 1e-5
    slopes = [weights @ (minimise(theta + h * e) - minimise(theta - h * e)) / (2 * h) for e in torch.eye(DIM).double()]
    torch.testing.assert_close(start.grad, torch.stack(slopes), rtol=1e-7, atol=1e-9)
