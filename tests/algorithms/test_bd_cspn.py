"""BD-CSPN against the definition, one class and one example at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import BDCSPN
from lightning_meta.algorithms.transductive.bd_cspn import rectified
from lightning_meta.core import Batch, Episode
from lightning_meta.core.prototypes import class_means
from tests.conftest import Make, conv4, feature_episodes, random_episodes

CASES: dict[str, Make] = {"bd-cspn": lambda: BDCSPN(conv4(), n_classes=12, features="l2n", pseudo=1)}


def by_definition(support: Batch, query: Tensor, pseudo: int | None, sharpness: float) -> Tensor:
    means = torch.stack([support.x[support.y == c].mean(0) for c in range(3)])
    query = query + (support.x.mean(0) - query.mean(0))
    cosines = torch.cosine_similarity(query[:, None], means[None], dim=2)
    corrected = []
    for c in range(3):
        joined = sorted((q for q in range(len(query)) if cosines[q].argmax() == c), key=lambda q: -cosines[q, c])
        members = [*support.x[support.y == c], *(query[q] for q in joined[:pseudo])]
        weights = torch.stack([(sharpness * F.cosine_similarity(x, means[c], dim=0)).exp() for x in members])
        corrected.append(sum(w * x for w, x in zip(weights / weights.sum(), members, strict=True)))
    return torch.stack(corrected)


@pytest.mark.parametrize("pseudo", [0, 2, None])
@pytest.mark.parametrize("k_shot", [1, 4])
def test_class_means_are_corrected_as_defined(pseudo: int | None, k_shot: int) -> None:
    tasks = feature_episodes(k_shot=k_shot, n_query=6)
    for t in range(3):
        support = Batch(tasks.support.x[t], tasks.support.y[t])
        means, present = rectified(support, tasks.query.x[t], pseudo, sharpness=10.0)
        expected = by_definition(support, tasks.query.x[t], pseudo, sharpness=10.0)
        torch.testing.assert_close(means[:3], expected, rtol=1e-12, atol=1e-14)
        assert present.tolist() == [True] * 3 + [False] * (len(present) - 3)
        assert means[3:].eq(0).all()


def test_without_queries_and_sharpness_the_means_stay() -> None:
    support = Batch(*(leaf[0] for leaf in feature_episodes(k_shot=4).support))
    found, _ = rectified(support, torch.rand(7, 8).double(), pseudo=0, sharpness=0.0)
    torch.testing.assert_close(found, class_means(*support)[0])


def test_the_queries_make_one_shot_more_accurate() -> None:
    """Where classes are clear of each other, and a single example of each says little about where it is."""
    tasks = feature_episodes(k_shot=1, n_query=30, width=32, noise=0.4)
    right = {
        pseudo: (
            BDCSPN(nn.Flatten(), features="l2n", pseudo=pseudo).eval().play(tasks).preds.argmax(2) == tasks.query.y
        )
        for pseudo in (0, 8)
    }
    assert right[8].double().mean() > right[0].double().mean() + 0.03


def test_names_of_classes_do_not_matter() -> None:
    tasks = random_episodes(n_query=4)
    module = CASES["bd-cspn"]().double().eval()
    renamed = Episode(Batch(tasks.support.x, (tasks.support.y + 1) % 3), Batch(tasks.query.x, (tasks.query.y + 1) % 3))
    torch.testing.assert_close(module.play(renamed).preds[..., [1, 2, 0]], module.play(tasks).preds[..., :3])
