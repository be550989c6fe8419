"""Baseline++: a classifier of scaled cosines."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import BaselinePlusPlus
from lightning_meta.core import Batch, Episode
from tests.conftest import CLASSES, Make, conv4, meta_gradient

CASES: dict[str, Make] = {
    "baseline++": lambda: BaselinePlusPlus(conv4(), n_classes=12, inner_lr=0.1, eval_inner_steps=10),
}
LR, STEPS, SCALE = 0.05, 20, 4.0


def baseline_plus_plus(**overrides) -> BaselinePlusPlus:
    torch.manual_seed(0)
    settings = dict(n_classes=CLASSES, scale=SCALE, inner_lr=LR, eval_inner_steps=STEPS)
    return BaselinePlusPlus(conv4(), **(settings | overrides)).double()


def test_logits_are_scaled_cosines_whatever_the_lengths() -> None:
    module, features = baseline_plus_plus(), torch.randn(5, 6).double()
    weight = module.classifier.weight
    logits = module.logits({"weight": weight}, features)
    cosines = torch.stack([torch.cosine_similarity(features, row[None]) for row in weight], dim=1)
    torch.testing.assert_close(logits, SCALE * cosines)
    torch.testing.assert_close(module.logits({"weight": 3 * weight}, 7 * features), logits)


def test_training_gradient_is_that_of_cross_entropy_over_the_pooled_batch(episodes: Episode) -> None:
    tasks = Episode(*(Batch(x[:1], y[:1] + 7) for x, y in episodes))
    module = baseline_plus_plus()
    gradient = meta_gradient(module, tasks)
    module.zero_grad()
    labels = torch.cat([part.y[0] for part in tasks])
    features, weight = torch.cat([module.backbone(part.x[0]) for part in tasks]), module.classifier.weight
    cosines = features @ weight.T / (features.norm(dim=1)[:, None] * weight.norm(dim=1))
    F.cross_entropy(SCALE * cosines, labels).backward()
    expected = {name: p.grad for name, p in module.named_parameters()}
    assert set(gradient) == set(expected)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_the_fitted_head_is_that_of_a_plain_sgd_loop_from_the_class_means(mode: str, episodes: Episode) -> None:
    module = baseline_plus_plus(task_mode=mode).eval()
    out = module.play(episodes)
    for t in range(3):
        features, labels = module.backbone(episodes.support.x[t]).detach(), episodes.support.y[t]
        weight = torch.stack([features[labels == n].mean(0) for n in range(3)]).requires_grad_()
        optimizer = torch.optim.SGD([weight], LR)
        for _ in range(STEPS):
            optimizer.zero_grad()
            cosines = torch.cosine_similarity(features[:, None], weight[None], dim=2)
            F.cross_entropy(SCALE * cosines, labels).backward()
            optimizer.step()
        queries = module.backbone(episodes.query.x[t])
        logits = SCALE * torch.cosine_similarity(queries[:, None], weight[None], dim=2)
        torch.testing.assert_close(out.preds[t, :, :3], logits, rtol=1e-9, atol=1e-11)


def test_without_steps_a_query_goes_to_the_class_mean_at_the_smallest_angle(episodes: Episode) -> None:
    module = baseline_plus_plus(eval_inner_steps=0).eval()
    one_shot = Episode(Batch(episodes.query.x[:, :3], torch.arange(3).expand(3, 3)), episodes.support)
    out = module.play(one_shot)
    for t in range(3):
        supports, queries = (F.normalize(module.backbone(part.x[t])) for part in one_shot)
        assert torch.equal(out.preds[t].argmax(1), (queries @ supports.T).argmax(1))
