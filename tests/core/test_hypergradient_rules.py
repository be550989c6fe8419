"""The four rules against closed forms, against each other, and in the mode in which tasks are mapped."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_meta.core import (
    SGD,
    Adam,
    Batch,
    FiniteDifference,
    FirstOrder,
    Hypergradient,
    Implicit,
    InnerOptimizer,
    Momentum,
    Params,
    Progress,
    Unrolled,
    map_tasks,
)
from lightning_meta.errors import ConfigError

DIM, ROWS = 4, 9
RULES: dict[str, Hypergradient] = {
    "unrolled": Unrolled(),
    "first-order": FirstOrder(),
    "finite difference": FiniteDifference(),
    "neumann": Implicit(terms=5, rate=0.05),
    "cg": Implicit("cg", terms=DIM),
}


def ridge(outer: Params, weights: Params, batch: Batch) -> Tensor:
    """A mean squared error and a decay whose logarithm is the outer variable."""
    errors = (batch.x @ weights["w"] - batch.y).square().mean()
    return errors + outer["log_decay"].exp() * weights["w"].square().sum()


def network(outer: Params, weights: Params, batch: Batch) -> Tensor:
    """Not quadratic: two layers, and outer variables that weigh the examples."""
    errors = ((batch.x @ weights["a"]).tanh() @ weights["b"] - batch.y).square()
    return (outer["log_decay"].exp() * errors).mean() + (outer["weigh"].sigmoid() * errors.tanh() * errors).sum()


def data(seed: int = 0, steps: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, ROWS, DIM, generator=generator, dtype=torch.float64)
    return Batch(x, torch.randn(steps, ROWS, generator=generator, dtype=torch.float64))


def start(kind: str, seed: int = 1) -> Params:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (DIM,)} if kind == "ridge" else {"a": (DIM, 3), "b": (3,)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def outer_of(kind: str) -> Params:
    outer = {"log_decay": torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)}
    if kind == "network":
        outer["weigh"] = torch.linspace(-1, 1, ROWS, dtype=torch.float64).requires_grad_()
    return outer


def judged(weights: Params) -> Tensor:
    """A loss of the weights alone."""
    return sum((value.sin().sum() for value in weights.values()), torch.zeros((), dtype=torch.float64))


def hypergradient(
    rule: Hypergradient, kind: str, steps: int, optimizer: InnerOptimizer, weights: Params | None = None
) -> dict[str, Tensor]:
    loss, outer, weights = {"ridge": ridge, "network": network}[kind], outer_of(kind), weights or start(kind)
    found = rule(loss, outer, Progress(weights, optimizer.init(weights)), data(steps=steps), optimizer)
    value = judged(found)
    if not value.requires_grad:
        return {name: torch.zeros_like(variable) for name, variable in outer.items()}
    grads = torch.autograd.grad(value, list(outer.values()), allow_unused=True)
    return dict(zip(outer, grads, strict=True))


def minimum(batch: Batch, log_decay: Tensor) -> Tensor:
    x, y = batch.x[0], batch.y[0]
    return torch.linalg.solve(x.T @ x / ROWS + log_decay.exp() * torch.eye(DIM, dtype=x.dtype), x.T @ y / ROWS)


@pytest.mark.parametrize("rule", [Implicit("cg", terms=DIM), Implicit(terms=400, rate=0.3)], ids=["cg", "neumann"])
def test_the_implicit_gradient_is_that_of_the_closed_form(rule: Implicit) -> None:
    """Of the log decay of ridge regression, at the minimum."""
    log_decay = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    best = minimum(data(), log_decay)
    (expected,) = torch.autograd.grad(judged({"w": best}), log_decay)
    found = hypergradient(rule, "ridge", 1, SGD(0.0), {"w": best.detach()})
    torch.testing.assert_close(found["log_decay"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("terms", [1, 3, 8])
def test_terms_of_the_series_are_unrolled_steps_from_the_minimum(terms: int) -> None:
    """Lorraine et al., section 2: of gradient descent with the rate of the series, on one batch."""
    best = {"w": minimum(data(), torch.tensor(-1.0, dtype=torch.float64))}
    outer = outer_of("ridge")
    batches = Batch(*(part.expand(terms, *part.shape[1:]) for part in data()))
    unrolled = Unrolled()(ridge, outer, Progress(best, ()), batches, SGD(0.1))
    (expected,) = torch.autograd.grad(judged(unrolled), outer["log_decay"])
    found = hypergradient(Implicit(terms=terms, rate=0.1), "ridge", 1, SGD(0.0), best)
    torch.testing.assert_close(found["log_decay"], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("optimizer", [SGD(0.1), Momentum(0.1), Adam(0.05)], ids=["sgd", "momentum", "adam"])
def test_the_finite_difference_comes_to_the_exact_derivative_quadratically(optimizer: InnerOptimizer) -> None:
    """Of one step by any optimizer: a tenth of the scale, a hundredth of the error."""
    exact = hypergradient(Unrolled(), "network", 1, optimizer)
    errors = []
    for scale in (1e-2, 1e-3):
        found = hypergradient(FiniteDifference(scale), "network", 1, optimizer)
        errors.append(max((found[name] - exact[name]).abs().max() for name in exact))
    assert errors[0] < 1e-3 and errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_the_finite_difference_of_several_steps_is_that_of_the_last() -> None:
    """From weights that the others lead to."""
    optimizer, batches = Momentum(0.1), data(steps=3)
    before = Unrolled()(network, outer_of("network"), Progress(start("network"), optimizer.init(start("network"))),
                        Batch(*(part[:2] for part in batches)), SGD(0.1))  # fmt: skip
    outer = outer_of("network")
    found = FiniteDifference(1e-4)(network, outer, Progress(start("network"), ()), batches, SGD(0.1))
    grads = torch.autograd.grad(judged(found), list(outer.values()))
    other = outer_of("network")
    last = Batch(*(part[2:] for part in batches))
    exact = Unrolled()(network, other, Progress({k: v.detach() for k, v in before.items()}, ()), last, SGD(0.1))
    torch.testing.assert_close(grads, torch.autograd.grad(judged(exact), list(other.values())), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("optimizer", [SGD(0.1), Adam(0.05)], ids=["sgd", "adam"])
def test_unrolled_is_the_derivative_by_finite_differences(optimizer: InnerOptimizer) -> None:
    found = hypergradient(Unrolled(), "network", 3, optimizer)["log_decay"]
    h, values = 1e-6, []
    for sign in (1, -1):
        outer = outer_of("network")
        outer["log_decay"] = outer["log_decay"].detach() + sign * h
        weights = start("network")
        moved = Unrolled()(network, outer, Progress(weights, optimizer.init(weights)), data(steps=3), optimizer)
        values.append(judged(moved))
    torch.testing.assert_close(found, ((values[0] - values[1]) / (2 * h)).detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", ["ridge", "network"])
def test_all_lead_to_the_same_weights_and_vmap_is_the_loop(name: str, kind: str) -> None:
    loss, outer, optimizer = {"ridge": ridge, "network": network}[kind], outer_of(kind), Momentum(0.05)
    weights = {k: torch.stack([start(kind, s)[k] for s in range(3)]) for k in start(kind)}
    batches = Batch(*(torch.stack([data(s, 2)[i] for s in range(3)]) for i in range(2)))

    def train(rule: Hypergradient, weights: Params, batches: Batch) -> Params:
        return rule(loss, outer, Progress(weights, optimizer.init(weights)), batches, optimizer)

    expected = map_tasks(partial(train, Unrolled()), weights, batches, mode="loop")
    results = {}
    for mode in ("vmap", "loop"):
        found = map_tasks(partial(train, RULES[name]), weights, batches, mode=mode)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        if name == "first-order":
            assert not any(value.requires_grad for value in found.values())
            return
        results[mode] = torch.autograd.grad(judged(found), list(outer.values()), allow_unused=True)
    torch.testing.assert_close(results["vmap"], results["loop"], rtol=1e-8, atol=1e-11)
    assert all(value.abs().max() > 1e-6 for value in results["loop"])


@pytest.mark.parametrize(("rate", "diverges"), [(0.06, False), (0.07, True)])
def test_a_series_that_diverges_is_seen_by_its_last_term(rate: float, diverges: bool) -> None:
    """The Hessian's eigenvalues are 1 and 30: it converges below a rate of 2 / 30."""
    slopes = torch.tensor([1.0, 30.0], dtype=torch.float64)

    def quadratic(outer: Params, weights: Params, batch: Batch) -> Tensor:
        return 0.5 * (slopes * (weights["w"] - outer["c"]) ** 2).sum()

    weights, nothing = {"w": torch.zeros(2, dtype=torch.float64)}, Batch(torch.zeros(1), torch.zeros(1))
    outer, v = {"c": torch.ones(2, dtype=torch.float64)}, {"w": torch.ones(2, dtype=torch.float64)}
    length = Implicit(terms=40, rate=rate).last_term(quadratic, outer, weights, nothing, v)
    assert (length > 1) == diverges
    torch.testing.assert_close(length, ((1 - rate * slopes) ** 39).norm() / 2**0.5)


def test_settings_that_cannot_be_are_told() -> None:
    for make, message in (
        (lambda: FiniteDifference(0.0), "scale=0.0 must be positive"),
        (lambda: Implicit("newton"), "must be neumann or cg"),
        (lambda: Implicit(rate=-1), "rate=-1 must be positive"),
        (lambda: Implicit(terms=0), "terms=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
