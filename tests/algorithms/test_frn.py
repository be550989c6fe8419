"""Feature map reconstruction (frn) against least squares in NumPy, and in the limits of its penalty."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import FRN
from lightning_meta.core import Episode
from tests.conftest import Make, conv4, random_episodes

CASES: dict[str, Make] = {"frn": lambda: warm(FRN(conv4(halvings=2)))}


def warm(module: FRN) -> FRN:
    """Errors of a few untrained channels are alike; at a larger scale they matter."""
    module.scale.data.fill_(20.0)
    return module


def frn(**overrides) -> FRN:
    torch.manual_seed(0)
    return warm(FRN(conv4(halvings=2), **overrides)).double()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("k_shot", [1, 3])
@torch.no_grad()
def test_logits_are_the_errors_of_ridge_regression(mode: str, k_shot: int) -> None:
    """Weights of the descriptors by `numpy.linalg.lstsq`: a ridge penalty is a regression of zeros on more rows."""
    module, tasks = frn(task_mode=mode, factor=0.4), random_episodes(k_shot=k_shot)
    module.alpha.fill_(0.3)
    module.beta.fill_(-0.2)
    preds = module.play(tasks).preds
    for t in range(3):
        # (images, places, channels)
        support, query = (module.backbone(b.x[t]).unflatten(1, (6, -1)).numpy().transpose(0, 2, 1) for b in tasks)
        for c in range(3):
            rows = np.concatenate([x for x, y in zip(support, tasks.support.y[t], strict=True) if y == c]) * 0.4
            penalty = k_shot * 16 / 6 * np.exp(0.3)
            system = np.concatenate([rows.T, penalty**0.5 * np.eye(len(rows))])
            for q, image in enumerate(query * 0.4):
                targets = np.concatenate([image.T, np.zeros((len(rows), len(image)))])
                weights = np.linalg.lstsq(system, targets, rcond=None)[0]
                error = ((np.exp(-0.2) * weights.T @ rows - image) ** 2).sum(1).mean()
                assert preds[t, q, c].item() == pytest.approx(-20 * error, rel=1e-8)
        assert (preds[t, :, 3:] == -torch.inf).all()


@torch.no_grad()
def test_limits_of_the_penalty(episodes: Episode) -> None:
    """Large: nothing is reconstructed, and the error is the query's own length. Small: everything in the span is."""
    module = frn()
    module.alpha.fill_(30.0)
    for t, preds in enumerate(module.play(episodes).preds):
        query = module.backbone(episodes.query.x[t]).unflatten(1, (6, -1))
        length = query.square().sum(1).mean(1)
        torch.testing.assert_close(preds[:, :3], -20 * length[:, None].expand(-1, 3), rtol=1e-9, atol=1e-12)
    module.alpha.fill_(-30.0)
    itself = Episode(episodes.support, episodes.support)
    own = module.play(itself).preds.gather(2, itself.query.y[:, :, None])
    torch.testing.assert_close(own, torch.zeros_like(own), rtol=0, atol=1e-9)


@torch.no_grad()
def test_training_adds_the_overlap_of_classes(episodes: Episode) -> None:
    module = frn(overlap_weight=7.0)
    training, plain = module.train().play(episodes), module.eval().play(episodes)
    for t in range(3):
        support = F.normalize(module.backbone(episodes.support.x[t]).flatten(), dim=0).view(6, 6, 16)
        pairs = [(a, b) for a in range(6) for b in range(a) if episodes.support.y[t][a] != episodes.support.y[t][b]]
        overlap = sum((support[a].T @ support[b]).square().sum() for a, b in pairs)
        torch.testing.assert_close(training.logs["overlap"][t], overlap, rtol=1e-10, atol=0)
        torch.testing.assert_close(training.loss[t] - plain.loss[t], 7 * overlap, rtol=1e-9, atol=1e-12)


def test_plays_any_way_with_the_same_weights() -> None:
    for n_way in (2, 7):
        assert frn().play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)
