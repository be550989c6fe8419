"""A common mean: the biased ridge regression against its normal equations and against its limits."""

import math

import pytest
import torch

from lightning_meta.algorithms import CommonMean
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from tests.conftest import Make

REGRESSORS: dict[str, Make] = {"common_mean": lambda: CommonMean(MLP(hidden=(8,)))}
LINEAR = MLP(in_features=3, hidden=())


def task(rows: int = 7) -> Batch:
    torch.manual_seed(0)
    return Batch(torch.randn(rows, 3, dtype=torch.float64), torch.randn(rows, 2, dtype=torch.float64))


def common_mean(penalty: float = 0.3, **kwargs: bool) -> CommonMean:
    module = CommonMean(LINEAR, outputs=2, penalty=penalty, **kwargs).double()
    if isinstance(module.mean, torch.nn.Parameter):
        torch.manual_seed(1)
        torch.nn.init.normal_(module.mean)
    return module


def test_the_weights_solve_the_normal_equations_of_the_biased_problem() -> None:
    """The gradient of mean squared error + penalty |W - mean|^2 is zero there, and it is the only such place."""
    module, (x, y) = common_mean(), task()
    weights = module.adapt(Batch(x, y)).head.detach().requires_grad_()
    columns = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    penalty = module.log_penalty.detach().exp()
    loss = (columns @ weights - y).square().sum(1).mean()
    loss = loss + penalty * (weights - module.mean.detach()).square().sum()
    (slope,) = torch.autograd.grad(loss, weights)
    assert slope.abs().max() < 1e-12


def test_a_small_penalty_is_least_squares_and_a_large_one_the_mean() -> None:
    x, y = task()
    columns = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    fitted = torch.linalg.lstsq(columns, y).solution
    torch.testing.assert_close(common_mean(1e-8).adapt(Batch(x, y)).head, fitted, rtol=1e-4, atol=1e-5)
    far = common_mean(1e9)
    torch.testing.assert_close(far.adapt(Batch(x, y)).head, far.mean, rtol=1e-6, atol=1e-6)
    pooled = common_mean(math.inf, learn_penalty=False)
    assert pooled.adapt(Batch(x, y)).head is pooled.mean


def test_the_mean_of_tasks_around_it_is_learned() -> None:
    """Tasks whose weights scatter around a mean that is not zero: it is found, and few examples do with it."""
    centre = torch.tensor([[2.0], [-1.0], [0.5], [3.0]])
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Batch:
        weights = centre + 0.1 * torch.randn(4, 1, generator=generator)
        x = torch.randn(rows, 3, generator=generator)
        return Batch(x, torch.cat([x, torch.ones(rows, 1)], 1) @ weights)

    module = CommonMean(LINEAR)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        module.query_loss(module.adapt(draw(2)), draw(20)).loss.backward()
        optimizer.step()
    torch.testing.assert_close(module.mean.detach(), centre, rtol=0, atol=0.15)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"penalty=0\.0 must be positive"):
        CommonMean(LINEAR, penalty=0.0)
    with pytest.raises(ConfigError, match=r"penalty=\.inf needs learn_mean: true and learn_penalty: false"):
        CommonMean(LINEAR, penalty=math.inf)
