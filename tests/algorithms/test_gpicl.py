"""GPICL: what comes later changes nothing before, a label tells only what follows, a query is next in the stream."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import GPICL
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make, random_episodes

CASES: dict[str, Make] = {"gpicl": lambda: GPICL(SIZE * SIZE, n_way=3, width=16, depth=2, heads=2)}


@pytest.fixture
def module() -> GPICL:
    torch.manual_seed(0)
    return GPICL(5, n_way=3, width=16, depth=2, heads=2).double().eval()


def stream(tasks: int = 2, examples: int = 8, queries: int = 4) -> Episode:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, examples + queries, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (tasks, examples + queries), generator=generator)
    return Episode(Batch(x[:, :examples], y[:, :examples]), Batch(x[:, examples:], y[:, examples:]))


@torch.no_grad()
@pytest.mark.parametrize(("leaf", "first"), [("x", 3), ("y", 4)])
def test_an_example_tells_only_what_follows_and_its_label_what_follows_it(module: GPICL, leaf: str, first: int) -> None:
    support, _ = stream()
    before = module.adapt(support).logits
    other = getattr(support, leaf).clone()
    other[:, 3] = (other[:, 3] + 1) % 3
    after = module.adapt(support._replace(**{leaf: other})).logits
    torch.testing.assert_close(after[:, :first], before[:, :first], rtol=1e-12, atol=1e-12)
    assert ((after - before)[:, first:].abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_a_query_is_the_next_of_the_stream_alone(module: GPICL) -> None:
    support, query = stream()
    preds = module.play(Episode(support, query)).preds
    for q in range(4):
        whole = Batch(*(torch.cat([a, b[:, q : q + 1]], 1) for a, b in zip(support, query, strict=True)))
        torch.testing.assert_close(module.adapt(whole).logits[:, -1], preds[:, q], rtol=1e-12, atol=1e-12)


def test_the_loss_is_the_cross_entropy_of_all_that_is_said(module: GPICL) -> None:
    support, query = stream()
    out = module.play(Episode(support, query))
    logits = torch.cat([module.adapt(support).logits, out.preds], 1)
    expected = F.cross_entropy(logits.mT, torch.cat([support.y, query.y], 1), reduction="none").mean(1)
    torch.testing.assert_close(out.loss, expected)
    out.loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


@torch.no_grad()
def test_images_are_rows_of_pixels(module: GPICL) -> None:
    tasks = random_episodes()
    wide = GPICL(SIZE * SIZE, n_way=3, width=16, depth=1, heads=2).double()
    flat = Episode(*(Batch(part.x.flatten(2), part.y) for part in tasks))
    torch.testing.assert_close(wide.play(tasks), wide.play(flat))
    with pytest.raises(ConfigError, match=r"has 256 numbers, but GPICL has inputs=5; set model\.inputs to 256"):
        module.play(tasks)
