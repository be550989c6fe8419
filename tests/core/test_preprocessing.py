"""The inputs of learned optimizers against the two cases of the paper."""

import math

import pytest
import torch

from lightning_meta.core.preprocessing import log_and_sign


@pytest.mark.parametrize("p", [10.0, 5.0])
def test_both_cases_on_both_sides_of_zero(p: float) -> None:
    values = [0.0, 1e-9, 0.9 * math.exp(-p), 1.1 * math.exp(-p), 0.3, 1.0, 200.0]
    for x in values + [-value for value in values]:
        big = abs(x) >= math.exp(-p)
        expected = (math.log(abs(x)) / p, math.copysign(1, x)) if big else (-1.0, math.exp(p) * x)
        found = log_and_sign(torch.tensor(x, dtype=torch.float64), p)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_second_order_survives_a_gradient_of_zero() -> None:
    x = torch.tensor([0.0, 0.5]).double().requires_grad_()
    log_and_sign(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([math.exp(10), 0.2]).double())
