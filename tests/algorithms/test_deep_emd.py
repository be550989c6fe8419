"""DeepEMD (deep_emd) against linear programming and, where weights are equal, all ways of pairing places."""

from importlib.util import find_spec
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import DeepEMD
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, random_episodes

CASES: dict[str, Make] = {"deep_emd": lambda: DeepEMD(conv4(halvings=3), transport_steps=20)}
VARIANTS: dict[str, Make] = {
    "deep_emd-class_steps": lambda: DeepEMD(conv4(halvings=3), transport_steps=20, class_steps=2, class_lr=0.5)
}
needs_pot = pytest.mark.skipif(find_spec("ot") is None, reason="POT is not installed")
SOLVERS = ["sinkhorn", pytest.param("exact", marks=needs_pot)]


def module(solver: str = "sinkhorn", **overrides) -> DeepEMD:
    torch.manual_seed(0)
    settings = dict(solver=solver, regularisation=0.01, transport_steps=5000) if solver == "sinkhorn" else {}
    return DeepEMD(conv4(halvings=3), **(dict(solver=solver) | settings | overrides)).double()


def pairs(count: int = 4, places: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines, and weights of both sides."""
    generator = torch.Generator().manual_seed(1)
    cosines = 2 * torch.rand(count, places, places, generator=generator).double() - 1
    given = [torch.rand(count, places, generator=generator).double() + 0.1 for _ in range(2)]
    return cosines, *(weights / weights.sum(1, keepdim=True) for weights in given)


def optimum(cosines: Tensor, source: Tensor, target: Tensor) -> float:
    """The most that a plan with these margins can gather, by linear programming."""
    linprog = pytest.importorskip("scipy.optimize").linprog
    rows, columns = cosines.shape
    margins = np.concatenate([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    solved = linprog(-cosines.flatten().numpy(), A_eq=margins, b_eq=torch.cat([source, target]).numpy())
    return -solved.fun


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_gathers_what_linear_programming_does(solver: str) -> None:
    cosines, source, target = pairs()
    found = module(solver).matched(cosines, source, target)
    best = [optimum(*pair) for pair in zip(cosines, source, target, strict=True)]
    expected = torch.tensor(best, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 if solver == "sinkhorn" else 1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_with_equal_weights_it_is_the_best_pairing(solver: str) -> None:
    cosines = pairs()[0]
    equal = torch.full((4, 4), 0.25).double()
    best = [max(sum(c[i, j] for i, j in enumerate(order)) / 4 for order in permutations(range(4))) for c in cosines]
    found = module(solver).matched(cosines, equal, equal)
    torch.testing.assert_close(found, torch.stack(best), rtol=0, atol=0.02 if solver == "sinkhorn" else 1e-12)


def test_a_plan_has_the_margins_that_it_was_asked_for() -> None:
    cosines, source, target = pairs()
    plan = module().sinkhorn(1 - cosines, source, target).plan
    assert plan.min() >= 0
    torch.testing.assert_close(plan.sum(2), source, rtol=1e-12, atol=0)
    torch.testing.assert_close(plan.sum(1), target, rtol=1e-6, atol=0)
    # and at the defaults nearly so
    plan = DeepEMD(conv4(halvings=3)).sinkhorn(1 - cosines, source, target).plan
    torch.testing.assert_close(plan.sum(1), target, rtol=0.02, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_are_those_of_the_optimum(solver: str) -> None:
    """By finite differences of linear programming, of weights that go on to sum to one."""
    cosines, source, target = (values[:1].clone() for values in pairs())
    leaves = [values.requires_grad_() for values in (cosines, source, target)]
    gradients = torch.autograd.grad(module(solver).matched(*leaves).sum(), leaves)
    generator = torch.Generator().manual_seed(2)
    step = 1e-4
    for place, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator).double()
        if place:
            direction = direction - direction.mean()
        ends = []
        for sign in (1, -1):
            moved = [values.detach() for values in leaves]
            moved[place] = moved[place] + sign * step * direction
            ends.append(optimum(*(values[0] for values in moved)))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert abs(expected) > 0.05
        found = (gradient * direction).sum().item()
        assert found == pytest.approx(expected, abs=0.05 if solver == "sinkhorn" else 1e-6)


@torch.no_grad()
def test_logits_are_of_weights_and_cosines_as_the_paper_has_them(episodes: Episode) -> None:
    ours = module(temperature=3.0)
    preds = ours.play(episodes).preds
    for t in range(3):
        support, query = (ours.backbone(part.x[t]).unflatten(1, (6, -1)).mT for part in episodes)
        classes = torch.stack([support[episodes.support.y[t] == c].mean(0) for c in range(3)])
        for q, image in enumerate(query):
            for c, of_class in enumerate(classes):
                a = torch.stack([(u @ of_class.mean(0)).clamp_min(0) + 1e-3 for u in image])
                b = torch.stack([(u @ image.mean(0)).clamp_min(0) + 1e-3 for u in of_class])
                u, v = (x - x.mean(1, keepdim=True) for x in (image, of_class))
                cosines = torch.cosine_similarity(u[:, None], v[None], dim=2)
                expected = 3 * optimum(cosines, a / a.sum(), b / b.sum())
                assert preds[t, q, c].item() == pytest.approx(expected, abs=0.06)
    assert (preds[..., 3:] == -torch.inf).all()


def test_class_maps_descend_on_the_support_loss() -> None:
    """One step is the gradient's, by plain autograd from the means; more steps fit better."""
    support = Batch(*(leaf[0] for leaf in random_episodes(k_shot=4).support))

    def loss_after(steps: int) -> tuple[Tensor, DeepEMD, Batch]:
        ours = module(class_steps=steps, class_lr=0.3, transport_steps=50, regularisation=0.05)
        features = Batch(ours.backbone(support.x).detach(), support.y)
        classes = ours.adapt_head(features)
        maps = features.x.unflatten(1, (6, -1)).mT
        return F.cross_entropy(ours.logits(classes, maps), support.y), classes, maps

    before, start, maps = loss_after(0)
    leaf = start.maps.detach().requires_grad_()
    ours = module(transport_steps=50, regularisation=0.05)
    (gradient,) = torch.autograd.grad(F.cross_entropy(ours.logits(start._replace(maps=leaf), maps), support.y), leaf)
    after, moved, _ = loss_after(1)
    torch.testing.assert_close(moved.maps[:3], (leaf - 0.3 * gradient)[:3].detach(), rtol=1e-8, atol=1e-10)
    assert loss_after(20)[0] < after < before


@needs_pot
def test_both_solvers_name_the_same_classes_and_learn_alike(episodes: Episode) -> None:
    sharp, true = module("sinkhorn").train(), module("exact").train()
    gradients = []
    for each in (sharp, true):
        each.play(episodes).loss.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.parameters()]))
    torch.testing.assert_close(sharp.play(episodes).preds, true.play(episodes).preds, rtol=0, atol=0.1)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.skipif(find_spec("ot") is not None, reason="POT is installed")
def test_without_pot_its_extra_is_named() -> None:
    with pytest.raises(ConfigError, match=r"solver=exact needs POT>=.*lightning_meta\[transport\]"):
        module("exact")


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Conv4 have one place; take larger maps"):
        DeepEMD(conv4(halvings=4))
    with pytest.raises(ConfigError, match=r"regularisation=0\.001 must be at least 0\.01"):
        module(regularisation=0.001)
