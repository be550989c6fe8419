"""Policy gradients against derivatives of the exact return, on a decision process small enough to be enumerated."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.func import grad

from lightning_meta.core.policy_gradient import (
    Surrogate,
    advantages,
    linear_baseline,
    returns_to_go,
    standardised,
    surrogate,
)

S, A, H = 2, 2, 3
PATHS = torch.tensor(list(product(range(A), range(S), repeat=H)))  # of actions and next states: 64 of them
ACTIONS_HB, NEXT_HB = PATHS[:, 0::2].T, PATHS[:, 1::2].T
STATES_HB = torch.cat([torch.zeros_like(NEXT_HB[:1]), NEXT_HB[:-1]])
GENERATOR = torch.Generator().manual_seed(0)
MOVES_SAS = torch.rand(S, A, S, generator=GENERATOR, dtype=torch.float64)
MOVES_SAS /= MOVES_SAS.sum(-1, keepdim=True)
REWARDS_SA = torch.randn(S, A, generator=GENERATOR, dtype=torch.float64)
THETA = torch.randn(S, A, generator=GENERATOR, dtype=torch.float64)
REWARDS_HB = REWARDS_SA[STATES_HB, ACTIONS_HB]


def exact_return(theta: Tensor) -> Tensor:
    """By backward induction from the end; no trajectories."""
    value_S = torch.zeros(S, dtype=torch.float64)
    for _ in range(H):
        value_S = (theta.softmax(-1) * (REWARDS_SA + MOVES_SAS @ value_S)).sum(-1)
    return value_S[0]


def log_probs(theta: Tensor) -> Tensor:
    return theta.log_softmax(-1)[STATES_HB, ACTIONS_HB]


def expected(kind: Surrogate, theta: Tensor, baseline: float = 0.0, at: Tensor | None = None) -> Tensor:
    """The surrogate over all trajectories, each as often as the policy `at` takes it."""
    at = theta.detach() if at is None else at
    chance_B = (log_probs(at) + MOVES_SAS[STATES_HB, ACTIONS_HB, NEXT_HB].log()).sum(0).exp()
    torch.testing.assert_close(chance_B.detach().sum(), torch.ones((), dtype=torch.float64))
    return (chance_B * surrogate(kind, log_probs(theta), returns_to_go(REWARDS_HB) - baseline)).sum()


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["plain", "lvc", "dice"])
def test_the_gradient_is_that_of_the_exact_return(kind: Surrogate, baseline: float) -> None:
    found = grad(lambda theta: expected(kind, theta, baseline))(THETA)
    torch.testing.assert_close(found, grad(exact_return)(THETA), rtol=0, atol=1e-15)


def test_the_exact_gradient_is_that_of_finite_differences() -> None:
    exact = grad(exact_return)(THETA)
    for place in product(range(S), range(A)):
        step = torch.zeros_like(THETA)
        step[place] = 1e-5
        difference = (exact_return(THETA + step) - exact_return(THETA - step)) / 2e-5
        assert difference.item() == pytest.approx(exact[place].item(), abs=1e-10)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_hessian_is_exact_by_dice_near_by_lvc_and_wrong_by_the_plain_loss(baseline: float) -> None:
    exact = hessian(exact_return, THETA)
    errors = {
        kind: (hessian(lambda theta, kind=kind: expected(kind, theta, baseline), THETA) - exact).abs().max()
        for kind in ("dice", "lvc", "plain")
    }
    size = exact.abs().max()
    assert errors["dice"] < 1e-15
    assert 1e-6 < errors["lvc"] / size < 0.25
    assert errors["plain"] / size > 0.5


def test_the_meta_gradient_is_that_of_the_exact_return_after_an_exact_step() -> None:
    """Of a support set without end. DiCE is exact; of the others the plain loss is the worst."""
    rate = 0.5

    def after(theta: Tensor, inner: Tensor) -> Tensor:
        return exact_return(theta + rate * inner)

    truth = grad(lambda theta: after(theta, grad(exact_return)(theta)))(THETA)
    errors = {
        kind: (grad(lambda t, k=kind: after(t, grad(lambda u: expected(k, u, at=t.detach()))(t)))(THETA) - truth)
        .abs()
        .max()
        for kind in ("dice", "lvc", "plain")
    }
    assert errors["dice"] < 1e-15
    assert errors["lvc"] < errors["plain"] / 2
    assert errors["plain"] > 0.01


def test_returns_and_advantages_follow_their_recursions() -> None:
    rewards, values = torch.randn(7, 3).double(), torch.randn(7, 3).double()
    later = gae = torch.zeros(3).double()
    next_value = torch.zeros(3).double()
    returns, estimates = returns_to_go(rewards, 0.9), advantages(rewards, values, 0.9, 0.8)
    for step in reversed(range(7)):
        later = rewards[step] + 0.9 * later
        gae = rewards[step] + 0.9 * next_value - values[step] + 0.9 * 0.8 * gae
        next_value = values[step]
        torch.testing.assert_close(returns[step], later)
        torch.testing.assert_close(estimates[step], gae)
    torch.testing.assert_close(advantages(rewards, values, 0.9), returns - values)


def test_the_baseline_finds_returns_that_are_linear_and_ignores_what_is_not_alive() -> None:
    seen, alive = torch.randn(9, 5, 2).double(), torch.ones(9, 5).double()
    time = torch.arange(9).double()[:, None] / 100
    returns = 3 * seen[..., 0] - seen[..., 1].square() + 5 * time - 2
    torch.testing.assert_close(linear_baseline(seen, returns, alive), returns, rtol=1e-3, atol=1e-3)
    alive[6:, 2] = 0
    spoiled = torch.where(alive > 0, returns, 1e3)
    found = linear_baseline(seen, spoiled, alive)
    torch.testing.assert_close(found * alive, returns * alive, rtol=1e-3, atol=1e-3)


def test_the_baseline_of_trajectories_that_see_nothing_new_is_finite() -> None:
    """Constant features are linearly dependent: least squares alone would divide by zero."""
    returns = torch.rand(10, 4)
    found = linear_baseline(torch.ones(10, 4, 1), returns, torch.ones(10, 4))
    assert found.isfinite().all()
    assert (found - returns).square().sum() < (returns - returns.mean()).square().sum()


def test_advantages_are_standardised_over_the_steps_that_are_alive() -> None:
    alive = (torch.arange(6)[:, None] < torch.tensor([6, 2, 4])).double()
    values = torch.randn(6, 3).double() * 4 + 3
    found = standardised(values, alive)
    there = found[alive > 0]
    assert there.mean().item() == pytest.approx(0, abs=1e-12)
    assert there.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert (found[alive == 0] == 0).all()
