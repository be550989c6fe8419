"""LaplacianShot: its energy, its affinities, and what it is without them."""

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.algorithms import LaplacianShot, SimpleShot
from lightning_meta.algorithms.transductive.laplacian_shot import affinities, assigned
from tests.conftest import Make, conv4, feature_episodes

CASES: dict[str, Make] = {"laplacian-shot": lambda: LaplacianShot(conv4(), n_classes=12, features="l2n")}
VARIANTS: dict[str, Make] = {
    "laplacian-shot-unrectified": lambda: LaplacianShot(conv4(), n_classes=12, features="l2n", rectify=False),
}


def energy(y: Tensor, distances: Tensor, w: Tensor, strength: float) -> Tensor:
    """As the file states it."""
    pairs = sum(w[q, p] * y[q] @ y[p] for q in range(len(y)) for p in range(len(y)))
    return (y * (distances + y.log())).sum() - strength / 2 * pairs


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_energy_falls_with_every_step(strength: float) -> None:
    """As it must where no eigenvalue of `strength * w` is below -2, by Pinsker's inequality."""
    queries = feature_episodes(n_query=8).query.x[0]
    distances, w = torch.rand(24, 3).double() * 3, affinities(queries, 2)
    assert strength * torch.linalg.eigvalsh(w).min() > -2
    energies = [energy(assigned(distances, w, strength, steps).exp(), distances, w, strength) for steps in range(12)]
    falls = -torch.stack(energies).diff()
    assert (falls[:4] > 0).all()
    assert (falls > -1e-12).all()  # rounding, once it has arrived
    assert falls[-1] < 1e-2 * falls[0]


def test_the_end_is_a_stationary_point_of_the_energy() -> None:
    """Of its gradient, a multiple of ones is left, which probabilities cannot follow."""
    queries = feature_episodes(n_query=8).query.x[0]
    distances, w = torch.rand(24, 3).double() * 3, affinities(queries, 2)
    y = assigned(distances, w, 0.7, 500).exp().requires_grad_()
    (slope,) = torch.autograd.grad(energy(y, distances, w, 0.7), y)
    torch.testing.assert_close(slope, slope.mean(1, keepdim=True).expand_as(slope), rtol=0, atol=1e-8)


def test_affinities_are_those_of_nearest_neighbours() -> None:
    queries = torch.rand(10, 4).double()
    found = affinities(queries, 3)
    for q in range(10):
        for p in range(10):
            near = [
                b in sorted((o for o in range(10) if o != a), key=lambda o: (queries[o] - queries[a]).norm())[:3]
                for a, b in ((q, p), (p, q))
            ]
            assert found[q, p] == sum(near) / 2
    assert affinities(queries[:2], 5).tolist() == [[0, 1], [1, 0]]


def test_without_ties_it_is_simple_shot() -> None:
    tasks = feature_episodes(n_query=20, noise=1.0)
    settings = dict(strength=0.0, rectify=False, features="l2n")
    found = LaplacianShot(nn.Flatten(), **settings).eval().play(tasks)
    expected = SimpleShot(nn.Flatten(), features="l2n").eval().play(tasks)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.preds.softmax(2), expected.preds.softmax(2))
    tied = LaplacianShot(nn.Flatten(), **(settings | {"strength": 1.0})).eval().play(tasks)
    assert not torch.equal(tied.preds.argmax(2), expected.preds.argmax(2))
