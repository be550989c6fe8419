"""VERSA (versa): the classifier that its networks write down, and the mean probability over draws of it."""

import pytest
import torch
from torch.distributions import Normal
from torch.nn import functional as F

from lightning_meta.algorithms import VERSA
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {"versa": lambda: VERSA(conv4(halvings=3), draws=3)}


def versa(**overrides) -> VERSA:
    torch.manual_seed(0)
    return VERSA(conv4(halvings=3), **overrides).double()


def classifiers(module: VERSA, tasks: Episode, t: int) -> tuple[Normal, Normal]:
    """Distributions of weights `(3, D)` and biases `(3, 1)`, from a loop over classes."""
    features, labels = module.backbone(tasks.support.x[t]), tasks.support.y[t]
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    return (
        Normal(module.weight_mean(means), module.weight_log_var(means).exp().sqrt()),
        Normal(module.bias_mean(means), module.bias_log_var(means).exp().sqrt()),
    )


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_evaluation_classifies_by_the_means_of_the_weights(mode: str, episodes: Episode) -> None:
    module = versa(task_mode=mode).eval()
    out = module.play(episodes)
    for t in range(3):
        weights, biases = classifiers(module, episodes, t)
        logits = module.backbone(episodes.query.x[t]) @ weights.mean.T + biases.mean.T
        torch.testing.assert_close(out.preds[t, :, :3], logits.log_softmax(1), rtol=1e-9, atol=1e-10)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(out.loss[t], F.cross_entropy(logits, episodes.query.y[t]))


def test_training_averages_probabilities_over_draws(episodes: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise that is known here. Their distribution is that of logits under weights that are drawn."""
    module, noise = versa(draws=4, task_mode="loop"), torch.randn(4, 6, 6, dtype=torch.float64)
    monkeypatch.setattr("torch.randn_like", lambda like: noise)
    out = module.train().play(episodes)
    for t in range(3):
        weights, biases = classifiers(module, episodes, t)
        query = module.backbone(episodes.query.x[t])
        mean = query @ weights.mean.T + biases.mean.T
        std = (query.square() @ weights.variance.T + biases.variance.T).sqrt()
        probabilities = (mean + std * noise[:, :, :3]).softmax(2).mean(0)
        torch.testing.assert_close(out.preds[t, :, :3].exp(), probabilities, rtol=1e-9, atol=1e-12)
        likelihoods = probabilities.gather(1, episodes.query.y[t][:, None])
        torch.testing.assert_close(out.loss[t], -likelihoods.log().mean(), rtol=1e-9, atol=0)
    drawn = query @ weights.sample((100_000,)).mT + biases.sample((100_000,)).mT
    torch.testing.assert_close((drawn.mean(0) - mean) / std, torch.zeros_like(mean), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.std(0), std, rtol=0.02, atol=0)
    correlations = torch.corrcoef(drawn[:, 0].T)
    torch.testing.assert_close(correlations, torch.eye(3).double(), rtol=0, atol=0.02)


def test_uncertainty_is_learned_and_gradients_are_finite() -> None:
    """With class slots that are empty."""
    gradient = meta_gradient(versa(), random_episodes(k_shot=3))
    assert all(values.isfinite().all() for values in gradient.values())
    assert gradient["weight_log_var.4.bias"].abs().max() > 1e-6


def test_plays_any_way_with_the_same_weights() -> None:
    for n_way in (2, 7):
        assert versa().play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)


def test_no_draws_are_refused() -> None:
    with pytest.raises(ConfigError, match="draws=0"):
        versa(draws=0)
