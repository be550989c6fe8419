"""Cross-attention against a loop over queries, heads and points, and against the mean that it generalises."""

import pytest
import torch

from lightning_meta.algorithms import AttentiveNeuralProcess
from lightning_meta.core import Batch, Episode
from lightning_meta.core.transformer import attend
from lightning_meta.errors import ConfigError
from tests.conftest import Make, random_functions

REGRESSORS: dict[str, Make] = {
    "attentive_neural_process": lambda: AttentiveNeuralProcess(width=16, layers=2, draws=4, heads=2),
}
QUERIES, POINTS, HEADS, WIDTH = 3, 5, 2, 8


@pytest.fixture
def features() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(rows, WIDTH, dtype=torch.float64) for rows in (QUERIES, POINTS, POINTS))


def test_attention_equals_an_explicit_loop(features: tuple[torch.Tensor, ...]) -> None:
    queries, keys, values = features
    kept = torch.tensor([1, 0, 1, 1, 0]).double()
    found = attend(queries, keys, values, kept[None], HEADS)
    size = WIDTH // HEADS
    for q in range(QUERIES):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            total, norm = torch.zeros(size).double(), 0.0
            for s in (0, 2, 3):
                weight = ((queries[q, part] * keys[s, part]).sum() / size**0.5).exp()
                total, norm = total + weight * values[s, part], norm + weight
            torch.testing.assert_close(found[q, part], total / norm, rtol=1e-10, atol=1e-12)


def test_one_head_with_equal_keys_is_the_mean_of_a_conditional_neural_process(
    features: tuple[torch.Tensor, ...],
) -> None:
    queries, keys, values = features
    found = attend(queries, keys[:1].expand(POINTS, -1), values, torch.ones(1, POINTS).double(), heads=1)
    torch.testing.assert_close(found, values.mean(0).expand(QUERIES, -1))


def test_a_support_point_attracts_the_queries_at_its_place() -> None:
    """With large keys a query at a support point reads the value of that point alone."""
    module, (support, _) = AttentiveNeuralProcess(width=WIDTH, heads=1).double().eval(), random_functions(n_tasks=1)
    queries = module.place_encoder(support.x[0])
    queries = 100 * torch.nn.functional.normalize(queries - queries.mean(0), dim=-1)
    memory = module.adapt(Batch(support.x[0], support.y[0])).code
    found = attend(queries, queries, memory.values, memory.kept[None], heads=1)
    torch.testing.assert_close(found[0], memory.values[0], rtol=1e-3, atol=1e-3)


def test_points_that_training_leaves_out_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = AttentiveNeuralProcess(width=WIDTH, heads=HEADS, draws=2).double().train()
    monkeypatch.setattr("torch.randn_like", torch.zeros_like)
    support, query = random_functions(n_tasks=1)
    noise = torch.tensor([0.1, 0.9, 0.3, 0.6, 0.4, 0.8])
    monkeypatch.setattr("torch.rand_like", lambda x: torch.full_like(x, 0.5) if x.shape[-1] == 1 else noise.to(x)[None])
    other = torch.where(noise[:, None] < 0.5, support.y, 7.0)
    before, after = (module.play(Episode(Batch(support.x, y), query)) for y in (support.y, other))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="width=8 must be a multiple of heads=3"):
        AttentiveNeuralProcess(width=8, heads=3)
