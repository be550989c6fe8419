"""The self-referential matrix of 1993 against its equations, a connection at a time; its gradient, by forward mode."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jvp

from lightning_meta.algorithms import IntrospectiveNet
from lightning_meta.algorithms.memory.introspective import State
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from tests.conftest import Make

REGRESSORS: dict[str, Make] = {"introspective": lambda: IntrospectiveNet(hidden=2, ticks=2)}


def small(**settings: float) -> IntrospectiveNet:
    torch.manual_seed(0)
    return IntrospectiveNet(**(dict(hidden=2, ticks=2) | settings)).double()


def stream() -> Batch:
    return Batch(*torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def address(module: IntrospectiveNet, unit: int, source: int) -> list[int]:
    """Its bits, 1 and -1, the lowest first."""
    number = unit * module.weights.shape[1] + source
    return [2 * int(bit) - 1 for bit in reversed(f"{number:0{module.parts[1]}b}")]


def test_every_connection_has_an_address_of_its_own_and_no_bit_is_wasted() -> None:
    module = small()
    units, sources = module.weights.shape
    assert units == sum(module.parts) and sources == units + 4  # x, the constant, the error, the weight that is read
    assert len({tuple(row) for row in module.addresses.tolist()}) == units * sources
    assert 2 ** (module.parts[1] - 1) < units * sources <= 2 ** module.parts[1]


def test_two_ticks_are_the_equations_connection_by_connection() -> None:
    module = small(rate=0.7)
    units, sources = module.weights.shape
    bits = module.parts[1]
    x, error = 0.4, -1.3
    generator = torch.Generator().manual_seed(2)
    unit, val = torch.randn(units, generator=generator).tanh().tolist(), 0.2
    told = (torch.tensor([row], dtype=torch.float64) for row in (unit, [error], [val]))
    state = State(module.weights[None], *told)
    weight = module.weights.tolist()
    for shown in (error, 0.0):
        seen = [x, 1.0, shown, val, *unit]
        net = [sum(weight[i][j] * seen[j] for j in range(sources)) for i in range(units)]
        ana, mod, delta = unit[1 : 1 + bits], unit[1 + bits : 1 + 2 * bits], unit[1 + 2 * bits]

        def g(spelled: list[float], i: int, j: int) -> float:
            pairs = zip(spelled, address(module, i, j), strict=True)
            return math.exp(-0.5 * sum((a - b) ** 2 for a, b in pairs))

        val = sum(g(ana, i, j) * weight[i][j] for i in range(units) for j in range(sources))
        weight = [[weight[i][j] + 0.7 * delta * g(mod, i, j) for j in range(sources)] for i in range(units)]
        unit = [net[0], *map(math.tanh, net[1:])]
        state = module.tick(torch.tensor([[x]], dtype=torch.float64), state)
        torch.testing.assert_close(state.units[0].tolist(), unit, rtol=1e-10, atol=1e-12)
        assert state.weight_read.item() == pytest.approx(val, rel=1e-10)
        torch.testing.assert_close(state.weights[0].tolist(), weight, rtol=1e-10, atol=1e-12)


def test_a_weight_that_is_spelled_is_read_and_changed_and_no_other() -> None:
    """Where the peak is narrow: even the weight of a connection into the unit that says by how much."""
    module = small(sharpness=20.0)
    bits = module.parts[1]
    by = 1 + 2 * bits
    unit = torch.zeros(1, sum(module.parts)).double()
    unit[0, 1 : 1 + bits] = torch.tensor(address(module, 0, 3)).double()
    unit[0, 1 + bits : 1 + 2 * bits] = torch.tensor(address(module, by, 5)).double()
    unit[0, by] = -0.25
    after = module.tick(torch.zeros(1, 1).double(), module.start(1)._replace(units=unit))
    torch.testing.assert_close(after.weight_read[0, 0], module.weights[0, 3])
    expected = torch.zeros_like(module.weights)
    expected[by, 5] = -0.25
    torch.testing.assert_close((after.weights[0] - module.weights).detach(), expected)


def test_an_error_is_seen_by_what_comes_after_it_and_changes_weights() -> None:
    module, support = small(), stream()
    before = module.adapt(support)
    for t in range(3):
        moved = support.y.clone()
        moved[t] += 1
        after = module.adapt(support._replace(y=moved))
        preds, others = (y - out.errors for y, out in ((support.y, before), (moved, after)))
        torch.testing.assert_close(others[: t + 1], preds[: t + 1], rtol=1e-12, atol=1e-14)
        assert t == 2 or (others[t + 1 :] - preds[t + 1 :]).abs().amax() > 1e-9
        assert (after.state.weights - before.state.weights).abs().amax() > 1e-12 or t == 2
    fixed = small(rate=0.0)
    assert torch.equal(fixed.adapt(support).state.weights[0], fixed.weights)


def test_the_gradient_is_the_one_that_is_computed_forward() -> None:
    """As the paper does, for one weight after another, here in directions that move all of them."""
    module, support = small(), stream()

    def loss(weights: Tensor) -> Tensor:
        return functional_call(Played(module), {"module.weights": weights}, (support,))

    theta = module.weights.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    for seed in range(3):
        direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        _, slope = jvp(loss, (theta.detach(),), (direction,))
        torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-9, atol=1e-12)
        step = 1e-6 * direction
        difference = (loss(theta + step) - loss(theta - step)) / 2e-6
        torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-9)


class Played(torch.nn.Module):
    """A stream of which the query goes on, so that weights can be given for all of it."""

    def __init__(self, module: IntrospectiveNet) -> None:
        super().__init__()
        self.module = module

    def forward(self, support: Batch) -> Tensor:
        return self.module.query_loss(self.module.adapt(support), Batch(support.x + 0.3, support.y)).loss


def test_mistaken_settings_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="ticks"):
        IntrospectiveNet(ticks=0)
