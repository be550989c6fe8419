"""The siamese network against the formulas of the paper, one pair at a time."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import Siamese
from lightning_meta.core import Episode
from tests.conftest import Make, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {"siamese": lambda: Siamese(conv4())}
VARIANTS: dict[str, Make] = {"siamese-cross-entropy": lambda: Siamese(conv4(), loss="cross_entropy")}


def test_scores_loss_and_verification_equal_the_formulas_pair_by_pair(episodes: Episode) -> None:
    module = Siamese(conv4()).double()
    with torch.no_grad():
        module.score.bias.fill_(0.1)
        module.score.weight.mul_(3)
    out = module.play(episodes)
    for t in range(3):
        queries, support = module.backbone(episodes.query.x[t]), module.backbone(episodes.support.x[t])
        losses: dict[bool, list] = {True: [], False: []}
        right: dict[bool, list] = {True: [], False: []}
        for q, query in enumerate(queries):
            of_class: dict[int, list] = {0: [], 1: [], 2: []}
            for example, label in zip(support, episodes.support.y[t].tolist(), strict=True):
                distance = sum(w * abs(a - b) for w, a, b in zip(module.score.weight[0], query, example, strict=True))
                p = torch.sigmoid(distance + module.score.bias[0])
                same = label == episodes.query.y[t, q].item()
                losses[same].append(-torch.log(p if same else 1 - p))
                right[same].append(float((p > 0.5) == same))
                of_class[label].append(p)
            scores = torch.stack([max(of_class[c]) for c in range(3)])
            torch.testing.assert_close(out.preds[t, q, :3].sigmoid(), scores, rtol=1e-10, atol=1e-12)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        balanced = sum(torch.stack(kind).mean() for kind in losses.values()) / 2
        torch.testing.assert_close(out.loss[t], balanced, rtol=1e-10, atol=1e-12)
        accuracy = sum(sum(kind) / len(kind) for kind in right.values()) / 2
        assert out.logs["verification_acc"][t].item() == pytest.approx(accuracy, abs=1e-12)
        assert 0.1 < accuracy < 0.9


@pytest.mark.parametrize("k_shot", [1, 3])
def test_cross_entropy_equals_the_formula_candidate_by_candidate(k_shot: int) -> None:
    """The probability of a class is the odds of its best match over the sum of those of all classes."""
    module, tasks = Siamese(conv4(), loss="cross_entropy").double(), random_episodes(k_shot=k_shot)
    with torch.no_grad():
        module.score.weight.mul_(3)
    out = module.play(tasks)
    for t in range(3):
        queries, support = module.backbone(tasks.query.x[t]), module.backbone(tasks.support.x[t])
        losses = []
        for query, label in zip(queries, tasks.query.y[t].tolist(), strict=True):
            best: dict[int, float] = {}
            for example, y in zip(support, tasks.support.y[t].tolist(), strict=True):
                p = torch.sigmoid(module.score((query - example).abs()))[0]
                best[y] = max(best.get(y, 0.0), p / (1 - p))
            losses.append(-torch.log(best[label] / sum(best.values())))
        torch.testing.assert_close(out.loss[t], torch.stack(losses).mean(), rtol=1e-10, atol=1e-12)


def test_balancing_equals_as_many_pairs_of_either_kind(episodes: Episode) -> None:
    """The paper draws them so: repeating the rarer kind until both are as frequent gives the plain mean."""
    module = Siamese(conv4()).double()
    features, support = module.backbone(episodes.query.x[0]), module.backbone(episodes.support.x[0])
    same = episodes.query.y[0][:, None] == episodes.support.y[0]
    log_odds = module.score((features[:, None] - support).abs())[..., 0]
    repeats = int((~same).sum() / same.sum())
    drawn = torch.cat([log_odds[same].repeat(repeats), log_odds[~same]])
    targets = torch.cat([torch.ones_like(drawn[: len(drawn) // 2]), torch.zeros_like(drawn[len(drawn) // 2 :])])
    torch.testing.assert_close(
        module.play(episodes).loss[0], F.binary_cross_entropy_with_logits(drawn, targets), rtol=1e-10, atol=1e-12
    )


def test_two_identical_images_have_the_highest_score_when_distance_counts_against(episodes: Episode) -> None:
    module = Siamese(conv4("inductive")).double()
    with torch.no_grad():
        module.score.weight.abs_().neg_()
    preds = module.play(Episode(episodes.support, episodes.support)).preds
    assert torch.equal(preds.argmax(-1), episodes.support.y)
    torch.testing.assert_close(preds.amax(-1), module.score.bias.expand(3, 6), rtol=0, atol=1e-12)


def test_plays_any_way_with_the_same_weights() -> None:
    module = Siamese(conv4()).double()
    for n_way in (1, 2, 7):
        tasks = random_episodes(n_way=n_way, k_shot=1)
        assert module.play(tasks).preds.shape == (3, 2 * n_way, n_way)
        assert all(gradient.isfinite().all() for gradient in meta_gradient(module, tasks).values())
