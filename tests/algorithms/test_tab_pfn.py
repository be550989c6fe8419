"""TabPFN: names of classes, gaps and other queries mean nothing; any number of classes; a joint masked pass."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import TabPFN
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make

CASES: dict[str, Make] = {"tab_pfn": lambda: TabPFN(features=SIZE * SIZE, width=16, depth=2, heads=2)}


@pytest.fixture
def module() -> TabPFN:
    torch.manual_seed(0)
    return TabPFN(features=6, width=16, depth=4, heads=2).double().eval()


def table(rows: int = 12, classes: int = 3, columns: int = 4, tasks: int = 2) -> Episode:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, rows + 5, columns, generator=generator, dtype=torch.float64)
    y = torch.arange(rows + 5).remainder(classes).expand(tasks, -1)
    return Episode(Batch(x[:, :rows], y[:, :rows]), Batch(x[:, rows:], y[:, rows:]))


@torch.no_grad()
def test_renaming_classes_permutes_the_predictions(module: TabPFN) -> None:
    (support, query), names = table(), torch.tensor([2, 0, 1])
    before = module.play(Episode(support, query))
    renamed = Episode(support._replace(y=names[support.y]), query._replace(y=names[query.y]))
    after = module.play(renamed)
    torch.testing.assert_close(after.preds[..., names], before.preds[..., :3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(before.preds.exp().sum(-1), torch.ones(2, 5).double())
    torch.testing.assert_close(before.loss, F.cross_entropy(before.preds.mT, query.y, reduction="none").mean(-1))
    swapped = Batch(support.x, support.y.roll(1, 1))  # other rows are of a class: something else is predicted
    assert (module.play(Episode(swapped, query)).preds - before.preds)[..., :3].abs().max() > 1e-3


@torch.no_grad()
def test_there_may_be_any_number_of_classes_of_any_numbers_of_columns(module: TabPFN) -> None:
    for classes, columns in ((2, 1), (25, 6)):
        preds = module.play(table(50, classes, columns)).preds.softmax(-1)
        assert preds.shape == (2, 5, 50)
        assert (preds[..., :classes] > 0).all() and not preds[..., classes:].any()
    with pytest.raises(ConfigError, match="features=6, but a row has 7 numbers"):
        module.play(table(columns=7))


@torch.no_grad()
def test_order_scale_and_what_does_not_vary_change_nothing(module: TabPFN) -> None:
    """Rows in another order, columns in other units, a constant column: standardised by the support set alone."""
    (support, query), order = table(), torch.randperm(12)
    before = module.play(Episode(support, query)).preds
    constant = torch.full((2, 17, 1), 0.1, dtype=torch.float64)
    x = torch.cat([1000 * torch.cat([support.x, query.x], 1) - 7, constant], 2)
    shuffled = Batch(x[:, :12][:, order], support.y[:, order])
    after = module.play(Episode(shuffled, Batch(x[:, 12:], query.y))).preds
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    far = query.x.clone()
    far[:, 1:] *= 50
    torch.testing.assert_close(module.play(Episode(support, Batch(far, query.y))).preds[:, 0], before[:, 0])


@torch.no_grad()
def test_a_gap_is_the_mean_of_its_column(module: TabPFN) -> None:
    support, query = table()
    gap = support.x.clone()
    gap[:, 3, 1] = torch.nan
    others = torch.arange(12) != 3
    mean, std = gap[:, others, 1].mean(1), gap[:, others, 1].std(1, correction=0)
    scaling = module.adapt(Batch(gap, support.y)).scaling
    torch.testing.assert_close(scaling.mean[:, 0, 1], mean)
    torch.testing.assert_close(scaling.std[:, 0, 1], std)
    empty = query.x.clone()
    empty[..., 1] = torch.nan
    filled = torch.where(empty.isnan(), mean[:, None, None], empty)
    with_gaps, without = (module.play(Episode(Batch(gap, support.y), Batch(x, query.y))) for x in (empty, filled))
    torch.testing.assert_close(with_gaps.preds, without.preds, rtol=1e-12, atol=1e-12)
    assert with_gaps.preds[..., :3].isfinite().all()


@torch.no_grad()
def test_a_class_that_the_support_set_lacks_has_no_part_in_the_loss(module: TabPFN) -> None:
    support, query = table()
    y = query.y.clone()
    y[:, 0] = 7
    out = module.play(Episode(support, Batch(query.x, y)))
    known = module.play(Episode(support, Batch(query.x[:, 1:], y[:, 1:])))
    torch.testing.assert_close(out.loss, known.loss)


def test_training_reads_only_the_rows_that_are_kept(module: TabPFN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are columns scaled by the others, and no gradient is lost in a class that nobody is left of."""
    support, query = table(6, tasks=1)
    draws = iter([torch.tensor([[0.1, 0.9, 0.3, 0.6, 0.4, 0.8]]), torch.tensor([[0.5]])])
    monkeypatch.setattr("torch.rand_like", lambda x: next(draws).to(x))
    trained = module.train().play(Episode(support, query))
    few = Batch(*(leaf[:, [0, 2, 4]] for leaf in support))
    alone = module.eval().play(Episode(few, query))
    torch.testing.assert_close(trained.loss, alone.loss)
    torch.testing.assert_close(trained.preds[..., :3], alone.preds, rtol=1e-9, atol=1e-9)
    trained.loss.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
