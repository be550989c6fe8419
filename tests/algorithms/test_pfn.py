"""Prior-Data Fitted Networks against one masked pass over all rows, and on functions that can be fitted exactly."""

import pytest
import torch

from lightning_meta.algorithms import PFN
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, random_functions

REGRESSORS: dict[str, Make] = {"pfn": lambda: PFN(width=16, depth=2, heads=2)}
STEPS = 1000


@pytest.fixture
def module() -> PFN:
    torch.manual_seed(0)
    return PFN(width=16, depth=3, heads=4).double().eval()


@torch.no_grad()
def test_reading_the_support_set_once_equals_one_joint_masked_pass(module: PFN) -> None:
    """As the paper draws it: all rows go through the layers side by side, and a mask leaves support columns alone."""
    support, query = random_functions()
    read, rows = 1 + support.x.shape[1], 1 + support.x.shape[1] + query.x.shape[1]
    parts = module.prior.expand(3, 1, -1), module.encoder(torch.cat(support, -1)), module.place_encoder(query.x)
    x, seen = torch.cat(parts, 1), torch.zeros(rows, rows)
    seen[:, :read] = 1
    for layer in module.transformer:
        x = layer(x, layer.memory(x), seen)
    joint = module.decode(query.x, module.norm(x[:, read:]))
    preds = module.play(Episode(support, query)).preds
    torch.testing.assert_close(preds[..., 0], joint.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(preds[..., 1], joint.std, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_order_of_the_support_set_and_other_queries_change_nothing(module: PFN) -> None:
    (support, query), order = random_functions(), torch.randperm(6)
    shuffled = Batch(support.x[:, order], support.y[:, order])
    others = Batch(torch.cat([query.x[:, :1], 9 * query.x[:, 1:]], 1), query.y)
    before, after = (module.play(Episode(*parts)).preds for parts in ((support, query), (shuffled, others)))
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[:, 1], before[:, 1], atol=1e-4)


@torch.no_grad()
def test_support_points_read_each_other(module: PFN) -> None:
    """Or every prediction would be one attention over points that were encoded alone, as in the attentive process."""
    support, _ = random_functions(n_tasks=1)
    moved = support.y.clone()
    moved[0, 0] += 1
    (_, (before, _)), (_, (after, _)) = (module.adapt(Batch(support.x, y)).memories[:2] for y in (support.y, moved))
    assert (after[0, 2:] - before[0, 2:]).abs().amax(-1).min() > 1e-5


def test_points_that_training_leaves_out_change_nothing(module: PFN, monkeypatch: pytest.MonkeyPatch) -> None:
    support, query = random_functions(n_tasks=1)
    kept = torch.tensor([0, 2, 4])
    draws = iter([torch.tensor([[0.1, 0.9, 0.3, 0.6, 0.4, 0.8]]), torch.tensor([[0.5]])])
    monkeypatch.setattr("torch.rand_like", lambda x: next(draws).to(x))
    trained = module.train().play(Episode(support, query)).preds
    few = module.eval().play(Episode(Batch(support.x[:, kept], support.y[:, kept]), query)).preds
    torch.testing.assert_close(trained, few, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_it_comes_to_the_posterior_of_coin_flips() -> None:
    """The mean of a coin whose chance is uniform is (heads + 1) / (flips + 2) after so many flips, by Laplace.

    Places say nothing, and the standard deviation of the next flip is that of its chance. Training reads 1 to 8 flips:
    without the row that is always read, no flip of one is no flip of eight, and 0.2 is foretold in place of 0.1.
    """
    torch.manual_seed(0)
    module = PFN(width=16, depth=2, heads=2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.005 * (1 - step / STEPS)
        y = (torch.rand(128, 16, 1) < torch.rand(128, 1, 1)).float()
        x = torch.zeros_like(y)
        optimizer.zero_grad()
        module.play(Episode(Batch(x[:, :8], y[:, :8]), Batch(x[:, 8:], y[:, 8:]))).loss.mean().backward()
        optimizer.step()
    for heads in range(9):
        flips = (torch.arange(8) < heads).float()[None, :, None]
        found = module.eval().play(Episode(Batch(torch.zeros(1, 8, 1), flips), Batch(*torch.zeros(2, 1, 1, 1)))).preds
        chance = (heads + 1) / 10
        mean, std = found[0, 0, 0].tolist()
        assert mean == pytest.approx(chance, abs=0.03)
        assert std == pytest.approx((chance * (1 - chance)) ** 0.5, abs=0.03)


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="width=64 must be a multiple of heads=3"):
        PFN(heads=3)
