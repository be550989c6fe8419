"""TabPFN for numbers: units of the target mean nothing; the exact posterior of the prior that it practised on."""

import pytest
import torch
from torch import Tensor

from lightning_meta.algorithms import TabPFNRegression
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make

REGRESSORS: dict[str, Make] = {
    "tab_pfn_regression": lambda: TabPFNRegression(features=1, width=16, depth=2, heads=2, bars=8)
}


@pytest.fixture
def module() -> TabPFNRegression:
    torch.manual_seed(0)
    return TabPFNRegression(features=6, width=16, depth=3, heads=2, bars=16).double().eval()


def table(rows: int = 12, columns: int = 4, tasks: int = 2) -> Episode:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, rows + 5, columns, generator=generator, dtype=torch.float64)
    y = x[..., :1].sin() + 0.1 * torch.randn(tasks, rows + 5, 1, generator=generator, dtype=torch.float64)
    return Episode(Batch(x[:, :rows], y[:, :rows]), Batch(x[:, rows:], y[:, rows:]))


@torch.no_grad()
def test_predictions_follow_the_units_of_the_target(module: TabPFNRegression) -> None:
    """In other units a mean is the same number in those units, and a density is per other unit."""
    support, query = table()
    before = module.play(Episode(support, query))
    after = module.play(Episode(*(Batch(x, 40 * y - 7) for x, y in (support, query))))
    torch.testing.assert_close(after.preds, 40 * before.preds - 7, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.loss, before.loss + torch.tensor(40.0).double().log(), rtol=1e-6, atol=1e-6)
    other = module.play(Episode(Batch(support.x, support.y.roll(1, 1)), query))
    assert (other.preds - before.preds).abs().max() > 1e-3  # it reads the targets


@torch.no_grad()
def test_order_of_rows_gaps_and_constant_columns_change_nothing(module: TabPFNRegression) -> None:
    (support, query), order = table(), torch.randperm(12)
    before = module.play(Episode(support, query)).preds
    constant = torch.full((2, 17, 1), 0.1, dtype=torch.float64)
    x = torch.cat([torch.cat([support.x, query.x], 1), constant], 2)
    shuffled = Batch(x[:, :12][:, order], support.y[:, order])
    torch.testing.assert_close(module.play(Episode(shuffled, Batch(x[:, 12:], query.y))).preds, before)
    alone = module.play(Episode(support, Batch(*(part[:, :1] for part in query)))).preds
    torch.testing.assert_close(alone, before[:, :1])


def test_training_reads_only_the_rows_that_are_kept(module: TabPFNRegression, monkeypatch: pytest.MonkeyPatch) -> None:
    support, query = table(6, tasks=1)
    draws = iter([torch.tensor([[0.1, 0.9, 0.3, 0.6, 0.4, 0.8]]), torch.tensor([[0.5]])])
    monkeypatch.setattr("torch.rand_like", lambda x: next(draws).to(x))
    trained = module.train().play(Episode(support, query))
    few = Batch(*(leaf[:, [0, 2, 4]] for leaf in support))
    alone = module.eval().play(Episode(few, query))
    torch.testing.assert_close(trained.loss, alone.loss)
    torch.testing.assert_close(trained.preds, alone.preds)
    trained.loss.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@torch.no_grad()
def test_one_row_or_equal_targets_have_the_scale_1(module: TabPFNRegression) -> None:
    support, query = table()
    for few in (Batch(*(leaf[:, :1] for leaf in support)), Batch(support.x, torch.full_like(support.y, 3.0))):
        out = module.play(Episode(few, query))
        assert out.preds.isfinite().all() and out.loss.isfinite().all()


def linear(tasks: int, generator: torch.Generator, rows: int = 24, noise: float = 0.3) -> tuple[Episode, Tensor]:
    """Linear functions of two numbers with weights of a normal distribution; the posterior means of the queries."""
    x = torch.randn(tasks, rows, 2, generator=generator)
    w = torch.randn(tasks, 2, 1, generator=generator)
    y = x @ w + noise * torch.randn(tasks, rows, 1, generator=generator)
    (x_S, x_Q), (y_S, y_Q) = x.split([8, rows - 8], 1), y.split([8, rows - 8], 1)
    precision = x_S.mT @ x_S / noise**2 + torch.eye(2)
    return Episode(Batch(x_S, y_S), Batch(x_Q, y_Q)), x_Q @ torch.linalg.solve(precision, x_S.mT @ y_S / noise**2)


@pytest.mark.slow
def test_it_comes_to_the_posterior_of_what_it_practises_on() -> None:
    """Bayesian linear regression, of which the posterior is known."""
    torch.manual_seed(0)
    module, generator = TabPFNRegression(features=2, width=32, depth=2, heads=4, bars=32), torch.Generator()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.003, total_steps=1500)
    held_out, exact = linear(500, generator.manual_seed(1))
    generator.manual_seed(2)
    for _ in range(1500):
        tasks, _ = linear(64, generator)
        optimizer.zero_grad()
        module.play(tasks).loss.mean().backward()
        optimizer.step()
        rates.step()
    with torch.no_grad():
        found = module.eval().play(held_out).preds
    assert (found - exact).square().mean() < 0.08  # of 2, the variance of the function
    assert (found - held_out.query.y).square().mean() < 1.6 * (exact - held_out.query.y).square().mean()


def test_bars_are_two_tails_and_more() -> None:
    with pytest.raises(ConfigError, match="bars=3, but a distribution needs 4"):
        TabPFNRegression(bars=3)
