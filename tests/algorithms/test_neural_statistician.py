"""The Neural Statistician against a model whose evidence is known in closed form, and against torch.distributions."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from lightning_meta.algorithms import NeuralStatistician
from lightning_meta.algorithms.generation.neural_statistician import Codes, black_and_white
from lightning_meta.core import Batch, Episode
from lightning_meta.core.gaussian import Gaussian
from lightning_meta.core.gaussian import kl_divergence as ours_kl
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make, blobs, random_episodes

SMALL: dict[str, Any] = dict(image_size=SIZE, hidden=8, width=128, c_size=16, z_size=8, draws=4)
CASES: dict[str, Make] = {"neural_statistician": lambda: NeuralStatistician(**SMALL)}

C_VAR, Z_VAR, X_VAR, SIDE = 1.0, 0.5, 0.3, 4


class Linear(NeuralStatistician):
    """c ~ N(0, 1); z | c ~ N(c, Z_VAR); each of D pixels x | z ~ N(z, X_VAR). All posteriors are known.

    Args:
        off: by how much of its deviation the mean of q(c | D) is wrong.
    """

    def __init__(self, off: float = 0.0, **kwargs: Any) -> None:
        super().__init__(image_size=SIDE, hidden=1, width=1, c_size=1, z_size=1, **kwargs)
        self.off, self.pixels = off, SIDE**2

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(-3).mean(-1, keepdim=True)  # which is sufficient

    def statistic(self, codes: Codes) -> Gaussian:
        noise = Z_VAR + X_VAR / self.pixels  # of an image's mean about c
        precision = 1 / C_VAR + codes.images / noise
        std = precision.rsqrt()
        return Gaussian(codes.total / noise / precision + self.off * std, std)

    def prior_z(self, c: Tensor) -> Gaussian:
        return Gaussian(c, torch.full_like(c, Z_VAR**0.5))

    def posterior_z(self, h: Tensor, c: Tensor) -> Gaussian:
        precision = 1 / Z_VAR + self.pixels / X_VAR
        return Gaussian((c / Z_VAR + h * self.pixels / X_VAR) / precision, torch.full_like(c, precision**-0.5))

    def log_likelihood(self, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return Normal(z[..., None, None], X_VAR**0.5).log_prob(x).flatten(-3).sum(-1)


@pytest.fixture
def grey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the linear model are not black and white."""
    name = "lightning_meta.algorithms.generation.neural_statistician.black_and_white"
    monkeypatch.setattr(name, lambda x: x)


def data_set(images: int) -> Tensor:
    """Drawn from the linear model, `(images, 1, SIDE, SIDE)`."""
    generator = torch.Generator().manual_seed(1)
    c = torch.randn(1, generator=generator, dtype=torch.float64)
    z = c + Z_VAR**0.5 * torch.randn(images, generator=generator, dtype=torch.float64)
    noise = torch.randn(images, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return z[:, None, None, None] + X_VAR**0.5 * noise


def evidence(x: Tensor) -> Tensor:
    """log p(D) by the covariance of all its pixels."""
    n, d = len(x), SIDE**2
    of_image = torch.eye(n, dtype=x.dtype).repeat_interleave(d, 0).repeat_interleave(d, 1)
    covariance = C_VAR + Z_VAR * of_image + X_VAR * torch.eye(n * d, dtype=x.dtype)
    return MultivariateNormal(torch.zeros(n * d, dtype=x.dtype), covariance).log_prob(x.flatten())


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long)


def mean_bound(module: Linear, x: Tensor, draws: int = 1500) -> tuple[float, float]:
    """The bound on log p(D), from all splits of D into three images and one, with its standard error."""
    torch.manual_seed(0)
    values = []
    for query in range(len(x)):
        rest = [i for i in range(len(x)) if i != query]
        tasks = Episode(
            Batch(x[rest].expand(draws, -1, -1, -1, -1), zeros(x[rest]).expand(draws, -1)),
            Batch(x[[query]].expand(draws, -1, -1, -1, -1), zeros(x[[query]]).expand(draws, -1)),
        )
        values.append(-len(x) * module.train().play(tasks).loss)
    of_draws = torch.stack(values).mean(0)
    return of_draws.mean().item(), (of_draws.std() / draws**0.5).item()


@pytest.mark.usefixtures("grey")
@torch.no_grad()
def test_with_the_true_posteriors_the_bound_is_the_evidence() -> None:
    """In the mean over draws and over which image is the query; another posterior is below it by its divergence."""
    x = data_set(4)
    exact = evidence(x).item()
    mean, error = mean_bound(Linear().double(), x)
    assert error < 0.05
    assert mean == pytest.approx(exact, abs=4 * error)
    wrong, error = mean_bound(Linear(off=1.5).double(), x)
    assert wrong == pytest.approx(exact - 1.5**2 / 2, abs=4 * error), "KL of equal deviations, 1.5 of them apart"


@pytest.mark.usefixtures("grey")
@torch.no_grad()
def test_more_draws_come_closer_to_the_likelihood_of_an_image_given_others() -> None:
    """log p(x | S) = log p(S and x) - log p(S); the bound of each number of draws is below it in the mean."""
    x = data_set(6)
    support, queries = Batch(x[:3], zeros(x[:3])), x[3:]
    exact = torch.stack([evidence(torch.cat([x[:3], query[None]])) for query in queries]) - evidence(x[:3])
    found = {}
    for draws in (2, 2000):
        module = Linear(draws=draws).double().eval()
        out = module.query_loss(module.adapt(support), Batch(queries, zeros(queries)))
        assert out.loss > -out.preds.mean(), "the mean logarithm is below the logarithm of the mean"
        found[draws] = out
    torch.testing.assert_close(found[2000].preds[:, 0], exact, rtol=0, atol=0.02)
    assert -found[2000].loss < exact.mean()


@torch.no_grad()
def test_weights_are_those_of_torch_distributions() -> None:
    torch.manual_seed(0)
    module, tasks = NeuralStatistician(**SMALL).double().eval(), random_episodes(n_tasks=1)
    support, query = (Batch(part.x[0], part.y[0]) for part in tasks)
    codes = module.adapt(support)
    out = module.query_loss(codes, query)
    x = black_and_white(query.x)
    weights = torch.zeros(module.noise_RL.shape[0], len(x), 3, dtype=torch.float64)
    for n in range(3):
        mean_code = module.encode(black_and_white(support.x[support.y == n])).mean(0)
        mean, spread = module.statistic_network(mean_code).chunk(2)
        for r, (noise_L, noise_Z) in enumerate(zip(module.noise_RL, module.noise_RZ, strict=True)):
            c = mean + (1e-3 + torch.nn.functional.softplus(spread)) * noise_L
            for q, image in enumerate(x):
                p_z = Independent(Normal(*module.prior_z(c)), 1)
                q_z = Independent(Normal(*module.posterior_z(module.encode(image[None])[0], c)), 1)
                z = q_z.mean + q_z.stddev * noise_Z
                pixels = Independent(Bernoulli(logits=module.paint(z[None], c[None])[0]), 3)
                weights[r, q, n] = pixels.log_prob(image) + p_z.log_prob(z) - q_z.log_prob(z)
    torch.testing.assert_close(out.preds, weights.exp().mean(0).log(), rtol=1e-9, atol=1e-9)
    own = weights[:, torch.arange(len(x)), query.y]
    torch.testing.assert_close(out.loss, -own.mean(), rtol=1e-9, atol=1e-9)
    others = (out.preds.sum(1) - out.preds[torch.arange(len(x)), query.y]) / 2
    torch.testing.assert_close(out.logs["nats_of_another_class"], -others.mean(), rtol=1e-9, atol=1e-9)


def test_divergences_are_those_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (Gaussian(torch.randn(7, generator=generator), torch.rand(7, generator=generator) + 0.1) for _ in range(2))
    torch.testing.assert_close(ours_kl(p, q), kl_divergence(Normal(*p), Normal(*q)))


@torch.no_grad()
def test_the_statistic_depends_on_which_images_a_class_has_and_not_on_their_order() -> None:
    torch.manual_seed(0)
    module, (support, _) = NeuralStatistician(**SMALL).double().eval(), random_episodes(n_tasks=1, k_shot=4)
    x, y = support.x[0], support.y[0]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    before, after = (module.statistic(module.adapt(Batch(x[i], y[i]))) for i in (torch.arange(len(y)), order))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    other = x.clone()
    other[(y == 0).nonzero()[0]] = 1 - other[(y == 0).nonzero()[0]]
    changed = module.statistic(module.adapt(Batch(other, y))).mean != before.mean
    assert changed[0].any() and not changed[1:3].any()


def test_images_of_another_size_are_refused() -> None:
    trainer = pl.Trainer(fast_dev_run=True, accelerator="cpu", inference_mode=False, logger=False)
    with pytest.raises(ConfigError, match=r"shape \(1, 28, 28\), but the inputs of Blobs have the shape \(1, 16, 16\)"):
        trainer.fit(NeuralStatistician(), datamodule=blobs())
    with pytest.raises(ConfigError, match="image_size=30 must be a multiple of 4"):
        NeuralStatistician(image_size=30)
    with pytest.raises(ConfigError, match="draws=3 must be even"):
        NeuralStatistician(draws=3)


@torch.no_grad()
def test_one_class_alone_has_nats_and_no_other() -> None:
    torch.manual_seed(0)
    module, tasks = NeuralStatistician(**SMALL).double().eval(), random_episodes(n_way=1, k_shot=3)
    out = module.play(tasks)
    assert out.preds.shape == (3, 2, 1) and not out.logs
    torch.testing.assert_close(module.metric.per_episode(out.preds, tasks.query.y), -out.preds[..., 0].mean(1))
    made = module.generate(module.adapt(Batch(tasks.support.x[0], tasks.support.y[0])), 5)
    assert made.shape == (1, 5, 1, SIZE, SIZE) and made.min() > 0 and made.max() < 1
    assert (made[0, 0] != made[0, 1]).any()


@torch.no_grad()
def test_without_c_a_variational_autoencoder_is_left_that_reads_no_support_set() -> None:
    torch.manual_seed(0)
    module, (support, query) = NeuralStatistician(**SMALL | {"c_size": 0}).double().eval(), random_episodes()
    out = module.play(Episode(support, query))
    other = module.play(Episode(Batch(1 - support.x, support.y), query))
    torch.testing.assert_close(other, out, rtol=0, atol=0)
    torch.testing.assert_close(out.logs["nats_of_another_class"], module.metric.per_episode(out.preds, query.y))
    assert module.train().play(Episode(support, query)).logs["kl_c"].tolist() == [0, 0, 0]
