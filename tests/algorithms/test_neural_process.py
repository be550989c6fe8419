"""The bound and the predictions of neural processes against PyTorch's distributions and draws without end."""

import math

import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence
from torch.distributions.categorical import Categorical
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import NeuralProcess
from lightning_meta.core import Batch, Episode
from lightning_meta.core.gaussian import Gaussian, mixture_moments
from lightning_meta.core.gaussian import kl_divergence as ours
from lightning_meta.errors import ConfigError
from tests.conftest import Make, random_functions

REGRESSORS: dict[str, Make] = {"neural_process": lambda: NeuralProcess(width=16, layers=2, draws=4)}


def neural_process(**options: int) -> NeuralProcess:
    return NeuralProcess(width=8, layers=2, task_mode="loop", **options).double()


def latent(module: NeuralProcess, x: torch.Tensor, y: torch.Tensor) -> Normal:
    mean, spread = module.to_latent(module.latent_encoder(torch.cat([x, y], -1)).mean(0)).chunk(2)
    return Normal(mean, 0.1 + 0.9 * torch.sigmoid(spread))


def decode(module: NeuralProcess, x: torch.Tensor, code: torch.Tensor, z_RL: torch.Tensor) -> Normal:
    """Distributions `(R, Q, 1)`, from the decoder's three inputs side by side."""
    inputs = [x.expand(len(z_RL), -1, -1), code.expand(len(z_RL), len(x), -1), z_RL[:, None].expand(-1, len(x), -1)]
    return Normal(*module.decode(torch.cat(inputs, -1)))


def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are kept whose noise is below the share."""
    monkeypatch.setattr("torch.rand_like", lambda x: torch.full_like(x, 1.0 if x.shape[-1] == 1 else 0.5))


def test_the_training_loss_is_the_evidence_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """All support points are kept, and the drawn z is one standard deviation above its mean."""
    module, tasks = neural_process().train(), random_functions()
    keep_all(monkeypatch)
    monkeypatch.setattr("torch.randn_like", torch.ones_like)
    out = module.play(tasks)
    for t in range(3):
        (x, y), (query_x, query_y) = (Batch(*(leaf[t] for leaf in batch)) for batch in tasks)
        prior, posterior = latent(module, x, y), latent(module, torch.cat([x, query_x]), torch.cat([y, query_y]))
        code = module.encoder(torch.cat([x, y], -1)).mean(0)
        z = posterior.mean + posterior.stddev
        kl = kl_divergence(posterior, prior).sum()
        bound = decode(module, query_x, code, z[None]).log_prob(query_y).sum() - kl
        torch.testing.assert_close(out.loss[t], -bound / len(query_x), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(out.logs["kl"][t], kl, rtol=1e-10, atol=1e-12)
        assert kl > 0


def test_the_bound_is_below_the_log_likelihood_by_the_divergence_from_the_true_posterior(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a single latent number all integrals over it are sums over a grid, whatever the decoder."""
    module, (support, query) = NeuralProcess(width=1, layers=2).double().train(), random_functions(n_tasks=1)
    for parameter in module.parameters():  # with a width of 1 many a start leaves z without a say
        torch.nn.init.uniform_(parameter, 0.2, 1.0)
    keep_all(monkeypatch)
    (x, y), (query_x, query_y) = (Batch(*(leaf[0] for leaf in batch)) for batch in (support, query))
    prior, q = latent(module, x, y), latent(module, torch.cat([x, query_x]), torch.cat([y, query_y]))
    z, step = torch.linspace(q.mean.item() - 12, q.mean.item() + 12, 20_001, dtype=torch.float64), 24 / 20_000
    code = module.encoder(torch.cat([x, y], -1)).mean(0)
    joint = decode(module, query_x, code, z[:, None]).log_prob(query_y).sum((1, 2)) + prior.log_prob(z)
    log_likelihood = (joint + math.log(step)).logsumexp(0)
    # The bound is a mean over the noise that z is drawn with, here over 2,001 tasks that are the same.
    noise = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    monkeypatch.setattr("torch.randn_like", lambda mean: noise[:, None] if mean.ndim == 2 else mean)
    same = tree_map(lambda leaf: leaf.expand(len(noise), -1, -1), Episode(support, query))
    weights = Normal(0.0, 1.0).log_prob(noise).exp() * (noise[1] - noise[0])
    bound = -len(query_x) * (weights * module.play(same).loss).sum()
    log_q = q.log_prob(z)
    gap = (log_q.exp() * (log_q - joint + log_likelihood) * step).sum()
    torch.testing.assert_close(log_likelihood - bound, gap, rtol=1e-5, atol=1e-7)
    assert gap > 1e-3


def test_divergence_and_mixture_are_those_of_torch_distributions() -> None:
    p, q = (Gaussian(torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1) for _ in "pq")
    torch.testing.assert_close(ours(p, q), kl_divergence(Normal(*p), Normal(*q)))
    components = Independent(Normal(p.mean.T, p.std.T), 0)
    mixture = MixtureSameFamily(Categorical(torch.ones(3, 5)), components)
    mean, std = mixture_moments(p)
    torch.testing.assert_close(mean, mixture.mean)
    torch.testing.assert_close(std, mixture.variance.sqrt())


def test_predictions_are_those_of_the_mixture_over_z() -> None:
    """With many fixed values of z, as with many random ones."""
    module, tasks = neural_process(draws=4000).eval(), random_functions(n_tasks=1)
    prior = latent(module, tasks.support.x[0], tasks.support.y[0])
    z_RL = prior.sample((20_000,))
    code = module.encoder(torch.cat([tasks.support.x[0], tasks.support.y[0]], -1)).mean(0)
    draws = decode(module, tasks.query.x[0], code, z_RL)
    expected = torch.stack([draws.mean.mean(0), (draws.variance.mean(0) + draws.mean.var(0)).sqrt()], -1)
    torch.testing.assert_close(module.play(tasks).preds[0], expected, rtol=0.01, atol=0.01)


def test_evaluation_draws_nothing() -> None:
    module, tasks = neural_process().eval(), random_functions()
    torch.testing.assert_close(module.play(tasks), module.play(tasks), rtol=0, atol=0)
    assert torch.equal(neural_process().draws_RL, module.draws_RL)
    assert module.draws_RL.mean(0).abs().max() < 1e-12


@pytest.mark.parametrize("draws", [0, 3])
def test_odd_numbers_of_draws_are_refused(draws: int) -> None:
    with pytest.raises(ConfigError, match=f"draws={draws} must be even"):
        neural_process(draws=draws)
