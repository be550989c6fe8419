"""DeepBDC (deep_bdc) against Székely's definition of the distance covariance, one pair of channels at a time."""

from math import dist

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import DeepBDC
from lightning_meta.algorithms.compare.deep_bdc import EPS, centred_distances
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, random_episodes

CASES: dict[str, Make] = {"deep_bdc": lambda: DeepBDC(conv4(halvings=2))}
VARIANTS: dict[str, Make] = {"deep_bdc-euclidean": lambda: DeepBDC(conv4(halvings=2), similarity="euclidean")}


def matrix(columns: list[list[float]], scale: float) -> list[list[float]]:
    """Distances of columns, centred entry by entry."""
    n = len(columns)
    distances = [[(scale * dist(a, b) ** 2 + EPS) ** 0.5 for b in columns] for a in columns]
    rows = [sum(row) / n for row in distances]
    whole = sum(rows) / n
    return [[distances[i][j] - rows[i] - rows[j] + whole for j in range(n)] for i in range(n)]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("similarity", ["inner", "euclidean"])
@torch.no_grad()
def test_logits_equal_the_definition(mode: str, similarity: str, episodes: Episode) -> None:
    module = DeepBDC(conv4(halvings=2), similarity=similarity, task_mode=mode).double()
    assert module.log_scale.exp().item() == pytest.approx(1 / 32)
    module.log_scale.fill_(-1.3)
    out, scale = module.play(episodes), torch.tensor(-1.3).double().exp().item()
    for t in range(3):
        support, query = (
            torch.tensor(
                [matrix(image.tolist(), scale) for image in module.backbone(b.x[t]).unflatten(1, (6, -1))],
                dtype=torch.float64,
            )
            for b in episodes
        )
        means = torch.stack([support[episodes.support.y[t] == c].mean(0) for c in range(3)])
        if similarity == "inner":
            logits = torch.stack([torch.stack([(a * b).sum() for b in means]) for a in query])
        else:
            logits = torch.stack([torch.stack([-(a - b).square().sum() for b in means]) for a in query])
        torch.testing.assert_close(out.preds[t, :, :3], logits, rtol=1e-7, atol=1e-9)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(
            out.loss[t], F.cross_entropy(out.preds[t, :, :3], episodes.query.y[t]), rtol=1e-12, atol=0
        )


def test_it_sees_what_a_covariance_does_not() -> None:
    """It sees that y is |x|, though they are not correlated."""
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[None, None]  # one observation of nine columns
    y = x.abs()
    a, b = (centred_distances(values, torch.tensor(1.0)) for values in (x, y))
    for rows in (a.sum(1), a.sum(2), b.sum(1)):
        torch.testing.assert_close(rows, torch.zeros_like(rows), rtol=0, atol=1e-12)
    assert ((x - x.mean()) * (y - y.mean())).sum().abs() < 1e-12
    assert (a * b).sum() > 0.1 * (a * a).sum()


def test_plays_any_way_with_the_same_weights() -> None:
    module = DeepBDC(conv4(halvings=2)).double()
    for n_way in (2, 7):
        assert module.play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)


def test_too_few_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 channels"):
        DeepBDC(conv4(hidden=2))
