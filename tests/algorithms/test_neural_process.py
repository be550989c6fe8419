"""The bound and the predictions of neural processes against PyTorch's distributions and draws without end."""

import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence
from torch.distributions.categorical import Categorical

from lightning_meta.algorithms import NeuralProcess
from lightning_meta.core.gaussian import Gaussian, mixture_moments
from lightning_meta.core.gaussian import kl_divergence as ours
from lightning_meta.errors import ConfigError
from tests.conftest import random_functions


def neural_process(**options: int) -> NeuralProcess:
    return NeuralProcess(width=8, layers=2, task_mode="loop", **options).double()


def latent(module: NeuralProcess, x: torch.Tensor, y: torch.Tensor) -> Normal:
    mean, spread = module.to_latent(module.encoder(torch.cat([x, y], -1)).mean(0)).chunk(2)
    return Normal(mean, 0.1 + 0.9 * torch.sigmoid(spread))


def test_the_training_loss_is_the_evidence_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """All support points are kept, and the drawn z is one standard deviation above its mean."""
    module, tasks = neural_process().train(), random_functions()
    monkeypatch.setattr("torch.rand_like", lambda x: torch.full_like(x, 0.5) if x.ndim else torch.ones_like(x))
    monkeypatch.setattr("torch.randn_like", torch.ones_like)
    out = module.play(tasks)
    for t in range(3):
        (x, y), (query_x, query_y) = ((batch.x[t], batch.y[t]) for batch in tasks)
        prior, posterior = latent(module, x, y), latent(module, torch.cat([x, query_x]), torch.cat([y, query_y]))
        z = posterior.mean + posterior.stddev
        mean, std = module.decode(torch.cat([query_x, z.expand(len(query_x), -1)], -1))
        kl = kl_divergence(posterior, prior).sum()
        bound = Normal(mean, std).log_prob(query_y).sum() - kl
        torch.testing.assert_close(out.loss[t], -bound / len(query_x), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(out.logs["kl"][t], kl, rtol=1e-10, atol=1e-12)
        assert kl > 0


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
    query_x = tasks.query.x[0]
    mean, std = module.decode(
        torch.cat([query_x.expand(len(z_RL), -1, -1), z_RL[:, None].expand(-1, len(query_x), -1)], -1)
    )
    expected = torch.stack([mean.mean(0), (std.square().mean(0) + mean.var(0)).sqrt()], -1)
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
