"""TPN (tpn): its graph by loops over pairs, and its closed form against handing labels on again and again."""

from math import exp

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import TPN
from lightning_meta.algorithms.compare.tpn import nearest_neighbour_graph, propagate
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, random_episodes

CASES: dict[str, Make] = {"tpn": lambda: TPN(conv4(halvings=2), neighbours=4, alpha=0.9)}


def test_the_graph_has_an_edge_where_one_end_is_near_to_the_other() -> None:
    nodes = torch.randn(9, 5, dtype=torch.float64)
    graph = nearest_neighbour_graph(nodes, 3)
    weights = [[exp(-sum((a - b) ** 2).item() / 5 / 2) for b in nodes] for a in nodes]
    one_sided = 0
    for i in range(9):
        for j in range(9):
            near = [weights[a][b] in sorted(weights[a])[-3:] for a, b in ((i, j), (j, i))]
            one_sided += near[0] != near[1]
            assert graph[i, j].item() == pytest.approx(weights[i][j] if any(near) else 0, abs=1e-12)
    assert one_sided > 0
    torch.testing.assert_close(nearest_neighbour_graph(nodes, 50), torch.tensor(weights).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_propagation_is_the_limit_of_its_steps(alpha: float) -> None:
    graph = nearest_neighbour_graph(torch.randn(12, 5, dtype=torch.float64), 4)
    seeds = F.pad(torch.eye(3, dtype=torch.float64), (0, 0, 0, 9))
    degrees, labels = graph.sum(1), seeds
    handed_on = torch.tensor(
        [[graph[i, j] / (degrees[i] * degrees[j]).sqrt() for j in range(12)] for i in range(12)], dtype=torch.float64
    )
    for _ in range(5000):
        labels = alpha * handed_on @ labels + seeds
    torch.testing.assert_close(propagate(graph, seeds, alpha), labels, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_without_propagation_queries_know_nothing_and_with_it_they_do(episodes: Episode) -> None:
    module = TPN(conv4(halvings=2), alpha=0.0).double()
    preds = module.play(episodes).preds
    assert not preds[:, :, :3].any()
    assert (preds[:, :, 3:] == -torch.inf).all()
    module.alpha = 0.5
    assert module.play(episodes).preds[:, :, :3].min() > 0


def test_training_asks_for_the_support_s_labels_too(episodes: Episode) -> None:
    module = TPN(conv4(halvings=2)).double()
    training, plain = module.train().play(episodes), module.eval().play(episodes)
    torch.testing.assert_close(training.preds, plain.preds)
    for t in range(3):
        features = torch.cat([module.backbone(batch.x[t]) for batch in episodes])
        scales = module.length_scale(features.unflatten(1, (6, 4, 4)))
        seeds = F.pad(F.one_hot(episodes.support.y[t], 3), (0, 0, 0, 6))
        logits = propagate(nearest_neighbour_graph(features / scales, 20), seeds, 0.99)
        labels = torch.cat([episodes.support.y[t], episodes.query.y[t]])
        torch.testing.assert_close(training.loss[t], F.cross_entropy(logits, labels), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(plain.loss[t], F.cross_entropy(logits[6:], labels[6:]), rtol=1e-7, atol=1e-9)


def test_plays_any_way_with_the_same_weights() -> None:
    module = TPN(conv4(halvings=2)).double()
    for n_way in (2, 7):
        assert module.play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"alpha": 1.0}])
def test_settings_without_a_limit_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"neighbours.*alpha"):
        TPN(conv4(), **settings)


@torch.no_grad()
def test_small_length_scales_do_no_harm(episodes: Episode) -> None:
    """Nodes are then far from all others, but not from themselves: nothing is handed on, and nothing overflows."""
    module = TPN(conv4(halvings=2)).eval()
    torch.nn.init.zeros_(module.length_scale[-1].weight)
    torch.nn.init.constant_(module.length_scale[-1].bias, 1e-9)
    tasks = Episode(*(batch._replace(x=batch.x.float()) for batch in episodes))
    preds = module.play(tasks).preds
    assert not preds[:, :, :3].any()
