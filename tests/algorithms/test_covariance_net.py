"""CovaMNet (covariance_net) against NumPy's covariance, class by class and place by place."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import CovaMNet
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, random_episodes


def wide_awake(module: CovaMNet) -> CovaMNet:
    """Place weights start all but zero; with larger ones logits differ."""
    torch.nn.init.normal_(module.place_weights)
    return module


CASES: dict[str, Make] = {"covariance_net": lambda: wide_awake(CovaMNet(conv4(halvings=2), dropout=0.0))}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("k_shot", [1, 3])
@torch.no_grad()
def test_logits_and_loss_equal_those_of_numpy_s_covariance(mode: str, k_shot: int) -> None:
    module = wide_awake(CovaMNet(conv4(halvings=2), dropout=0.0, task_mode=mode)).double()
    tasks = random_episodes(k_shot=k_shot)
    out, weights = module.play(tasks), module.place_weights.numpy()
    for t in range(3):
        # (images, places, channels)
        support, query = (module.backbone(b.x[t]).unflatten(1, (6, -1)).numpy().transpose(0, 2, 1) for b in tasks)
        expected = np.zeros((len(query), 3))
        for c in range(3):
            pool = np.concatenate([x for x, y in zip(support, tasks.support.y[t], strict=True) if y == c])
            covariance = np.cov(pool.T)
            for q, image in enumerate(query):
                for place, descriptor in enumerate(image - image.mean(0)):
                    expected[q, c] += weights[place] * descriptor @ covariance @ descriptor
        logits = torch.from_numpy(expected)
        torch.testing.assert_close(out.preds[t, :, :3], logits, rtol=1e-9, atol=1e-10)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(out.loss[t], F.cross_entropy(logits, tasks.query.y[t]), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_dropout_is_for_training_alone(episodes: Episode) -> None:
    module = CovaMNet(conv4(halvings=2), dropout=0.5).double()
    first, second = (module.train().play(episodes).preds for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (module.eval().play(episodes).preds for _ in range(2))
    assert torch.equal(first, second)


def test_plays_any_way_with_the_same_weights() -> None:
    module = CovaMNet(conv4(halvings=2)).double()
    for n_way in (2, 7):
        assert module.play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)


def test_maps_of_one_place_say_nothing() -> None:
    """The covariance of one descriptor is zero, and so would be every score and gradient."""
    with pytest.raises(ConfigError, match=r"the maps of Conv4 have one place; .* such as Conv4 with halvings=2"):
        CovaMNet(conv4(halvings=4))
