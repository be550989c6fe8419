"""The variational homoencoder (homoencoder): what its posterior has read, and that its bound is one."""

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from lightning_meta.algorithms import NeuralStatistician, VariationalHomoencoder
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.algorithms.test_neural_statistician import (  # noqa: F401 - a fixture
    SIDE,
    SMALL,
    X_VAR,
    Z_VAR,
    Linear,
    data_set,
    evidence,
    grey,
    mean_bound,
)
from tests.conftest import Make, random_episodes

CASES: dict[str, Make] = {"homoencoder": lambda: VariationalHomoencoder(**SMALL)}


class LinearHomoencoder(VariationalHomoencoder, Linear):
    """The linear model, whose q(c | S) is exact."""


@pytest.mark.usefixtures("grey")
@torch.no_grad()
def test_the_bound_has_the_value_that_it_has_in_closed_form_and_is_one() -> None:
    """Given c, an image is normal, so its log-likelihood is quadratic in c; mean over which image is the query."""
    x, pixels = data_set(4), SIDE**2
    module = LinearHomoencoder(class_images=4).double()
    mean, error = mean_bound(module, x)
    covariance = Z_VAR + X_VAR * torch.eye(pixels, dtype=x.dtype)
    bounds = []
    for query in range(4):
        rest = x[[i for i in range(4) if i != query]]
        mean_11, std_11 = module.statistic(module.codes(module.encode(rest), torch.zeros(3), 1))
        q = Normal(mean_11.squeeze(), std_11.squeeze())
        at_mean = MultivariateNormal(q.mean.expand(pixels), covariance).log_prob(x[query].flatten())
        curvature = covariance.inverse().sum()
        bounds.append(4 * (at_mean - curvature * q.variance / 2) - kl_divergence(q, Normal(0.0, 1.0)))
    assert mean == pytest.approx(torch.stack(bounds).mean().item(), abs=4 * error)
    assert mean + 4 * error < evidence(x).item()


@torch.no_grad()
def test_c_does_not_know_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other queries leave the divergence of c as it is; the Neural Statistician's has read them."""
    monkeypatch.setattr("torch.randn_like", torch.zeros_like)
    support, query = random_episodes()
    for cls, knows in ((VariationalHomoencoder, False), (NeuralStatistician, True)):
        torch.manual_seed(0)
        module = cls(**SMALL).double()
        before, after = (module.play(Episode(support, Batch(x, query.y))).logs for x in (query.x, 1 - query.x))
        assert torch.equal(before["kl_c"], after["kl_c"]) != knows


def test_a_class_has_images() -> None:
    with pytest.raises(ConfigError, match="class_images=0 must be at least 1"):
        VariationalHomoencoder(class_images=0)
