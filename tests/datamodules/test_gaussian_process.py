"""Draws and posteriors against kernels written out, with moments over many episodes and PyTorch's distributions."""

from math import exp, pi, sin, sqrt

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import GaussianProcess, RBFProcess
from lightning_meta.datamodules.functions.gaussian_process import KERNELS, GaussianProcessSource
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicLogLikelihood

LENGTH, AMPLITUDE, PERIOD, NOISE = 0.4, 1.3, 1.5, 0.1
SHAPE = EpisodeShape(n_way=1, k_shot=6, n_query=4)


def fixed(*kernels: str) -> GaussianProcessSource:
    """A source whose functions share the parameters of their kernels."""
    return GaussianProcessSource(kernels, (LENGTH, LENGTH), (AMPLITUDE, AMPLITUDE), (PERIOD, PERIOD))


def covariance(kernel: str, a: float, b: float) -> float:
    d = abs(a - b)
    if kernel == "rbf":
        return AMPLITUDE**2 * exp(-(d**2) / (2 * LENGTH**2))
    if kernel == "periodic":
        return AMPLITUDE**2 * exp(-((PERIOD * sin(pi * d / PERIOD) / pi) ** 2) / (2 * LENGTH**2))
    return AMPLITUDE**2 * (1 + sqrt(5) * d / LENGTH + 5 * d**2 / (3 * LENGTH**2)) * exp(-sqrt(5) * d / LENGTH)


def matrix(kernel: str, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    return torch.tensor([[covariance(kernel, x, z) for z in b] for x in a], dtype=torch.float64)


def points(tasks: Episode) -> tuple[np.ndarray, np.ndarray]:
    x, y = (torch.cat(leaves, 1)[..., 0].double().numpy() for leaves in zip(*tasks, strict=True))
    return x, y


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_posterior_is_that_of_a_joint_normal_distribution(kernel: str) -> None:
    """By the precision matrix of all points, not by the formula with the support's covariance."""
    source, keys = fixed(kernel), episode_keys(0, 2, range(3))
    x, y = points(source.sample(keys, SHAPE))
    mean, std = source.posterior(keys, SHAPE)
    for t in range(3):
        for q in range(4):
            places = np.append(x[t, :6], x[t, 6 + q])
            precision = torch.linalg.inv(matrix(kernel, places, places) + NOISE**2 * torch.eye(7).double())
            expected_mean = -(precision[6, :6] @ torch.from_numpy(y[t, :6])) / precision[6, 6]
            assert mean[t, q] == pytest.approx(expected_mean.item(), abs=2e-5)  # x and y of episodes are float32
            assert std[t, q] == pytest.approx(precision[6, 6].item() ** -0.5, rel=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_are_whitened_by_the_kernel_and_the_noise(kernel: str) -> None:
    """Of 2,000 functions, each with places of its own, the whitened values are standard normal and independent."""
    source, keys = fixed(kernel), episode_keys(1, 0, range(2000))
    x, y = points(source.sample(keys, EpisodeShape(1, 3, 2)))
    places, values = torch.from_numpy(x[:, :5]), torch.from_numpy(y[:, :5])
    joint = torch.stack([matrix(kernel, row, row) for row in places.numpy()]) + NOISE**2 * torch.eye(5).double()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(joint), values[..., None], upper=False)[..., 0]
    torch.testing.assert_close(white.T.cov(), torch.eye(5).double(), rtol=0, atol=0.12)
    torch.testing.assert_close(white.mean(0), torch.zeros(5).double(), rtol=0, atol=0.1)
    assert values.var() == pytest.approx(AMPLITUDE**2 + NOISE**2, rel=0.1)


def test_the_posterior_on_a_grid_goes_through_the_support_points() -> None:
    source, keys = GaussianProcessSource(noise=1e-4), episode_keys(0, 2, [5])
    shape = EpisodeShape(1, 4, 1)
    x, y = points(source.sample(keys, shape))
    mean, std = source.posterior(keys, shape, x[0, :4])
    np.testing.assert_allclose(mean[0], y[0, :4], atol=1e-3)
    assert std.max() < 1e-3


def test_the_true_posterior_is_calibrated_and_the_best() -> None:
    """Its query values are standard normal once standardised; what knows less, or claims more, scores lower."""
    data = GaussianProcess(k_shot=5, n_query=10)
    data.setup("test")
    keys = episode_keys(0, 2, range(1000))
    truth = np.stack(data.source("test").posterior(keys, data.shapes["test"]), -1)
    truth = torch.from_numpy(truth).unsqueeze(2)
    tasks = data.dataset("test").__getitems__(range(1000))
    mean, std = truth.unbind(-1)
    z = (tasks.query.y - mean) / std
    assert z.mean() == pytest.approx(0, abs=0.05)
    assert z.square().mean() == pytest.approx(1, abs=0.05)

    def score(mean: torch.Tensor, std: torch.Tensor) -> float:
        return EpisodicLogLikelihood.per_episode(torch.stack([mean, std], -1), tasks.query.y).mean().item()

    best = score(mean, std)
    assert best == pytest.approx(Normal(mean, std).log_prob(tasks.query.y).mean().item())
    rivals = [(mean, 0.8 * std), (mean, 1.25 * std), (0.9 * mean, std), (0 * mean, 0 * std + tasks.query.y.std())]
    assert best > max(score(*rival) for rival in rivals) + 0.003


def density(covariances: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Joint densities of noisy values `(..., M)` for each of C covariances `(C, M, M)`: `(..., C)`."""
    noisy = covariances + NOISE**2 * torch.eye(covariances.shape[-1]).double()
    joint = MultivariateNormal(torch.zeros(noisy.shape[-1]).double(), noisy)
    return joint.log_prob(values.unsqueeze(-2)).exp()


def test_the_averaged_posterior_is_the_ratio_of_joint_densities_summed_over_kernels() -> None:
    """With parameters fixed there are three kernels. Moments are integrals over a grid of values."""
    source, keys = fixed(*KERNELS), episode_keys(0, 2, range(3))
    x, y = points(source.sample(keys, SHAPE))
    found = source.averaged_posterior(keys, SHAPE)
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    for t in range(3):
        for q in range(4):
            places, support = np.append(x[t, :6], x[t, 6 + q]), torch.from_numpy(y[t, :6])
            joint = torch.stack([matrix(kernel, places, places) for kernel in KERNELS])
            values = torch.cat([grid, torch.tensor([y[t, 6 + q]])])
            rows = torch.cat([support.expand(len(values), -1), values[:, None]], 1)
            ratios = density(joint, rows).sum(-1) / density(joint[:, :6, :6], support).sum()
            assert found.log_density[t, q] == pytest.approx(ratios[-1].log().item(), abs=2e-4)  # values are float32
            weights = ratios[:-1] * (grid[1] - grid[0])
            assert weights.sum() == pytest.approx(1, abs=1e-4)
            mean = (weights * grid).sum()
            assert found.mean[t, q] == pytest.approx(mean.item(), abs=2e-4)
            variance = (weights * (grid - mean).square()).sum()
            assert found.std[t, q] == pytest.approx(variance.sqrt().item(), abs=2e-4)


def test_the_averaged_posterior_equals_a_dense_enumeration_of_parameters() -> None:
    """By joint densities on a grid of lengths, amplitudes and periods, each in the middle of its cell."""
    source, keys = GaussianProcessSource(("periodic",)), episode_keys(0, 2, range(3))
    x, y = points(source.sample(keys, SHAPE))
    found = source.averaged_posterior(keys, SHAPE)
    lengths, amplitudes, periods = (
        torch.linspace(low, high, 2 * cells + 1).double()[1::2]
        for (low, high), cells in zip((source.length_scale, source.amplitude, source.period), (16, 16, 60), strict=True)
    )
    length, amplitude, period = torch.cartesian_prod(lengths, amplitudes, periods).T[..., None, None]
    for t in range(3):
        places = torch.from_numpy(x[t, :7])
        chord = period / pi * (pi * (places[:, None] - places) / period).sin()
        joint = amplitude**2 * (-(chord**2) / (2 * length**2)).exp()
        values = torch.from_numpy(y[t, :7])
        expected = density(joint, values).sum() / density(joint[:, :6, :6], values[:6]).sum()
        assert found.log_density[t, 0] == pytest.approx(expected.log().item(), abs=2e-3)


def test_knowing_the_kernel_is_worth_more_than_averaging_over_kernels_and_that_more_than_other_normals() -> None:
    keys, shape = episode_keys(0, 2, range(200)), EpisodeShape(1, 8, 10)
    source = GaussianProcessSource()
    y = source.sample(keys, shape).query.y[..., 0].double()
    averaged = source.averaged_posterior(keys, shape)

    def score(mean: np.ndarray, std: np.ndarray) -> float:
        return Normal(torch.from_numpy(mean), torch.from_numpy(std)).log_prob(y).mean().item()

    known, normal = score(*source.posterior(keys, shape)), score(averaged.mean, averaged.std)
    assert known > averaged.log_density.mean() + 0.05
    assert averaged.log_density.mean() > normal + 0.01
    rivals = [(averaged.mean, factor * averaged.std) for factor in (0.8, 1.25)] + [(0.9 * averaged.mean, averaged.std)]
    assert normal > max(score(*rival) for rival in rivals) + 0.003


def test_kernels_are_drawn_for_each_episode() -> None:
    """Far from the data, and at distances of whole periods, only kernels differ; here their kinds are counted."""
    keys = episode_keys(0, 0, range(3000))
    one = EpisodeShape(1, 1, 1)
    alone = {name: GaussianProcessSource((name,)).posterior(keys, one)[0][:, 0] for name in KERNELS}
    mixed = GaussianProcessSource().posterior(keys, one)[0][:, 0]
    shares = [np.isclose(mixed, alone[name], rtol=1e-12, atol=0).mean() for name in KERNELS]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)


def test_shapes_ranges_and_purity() -> None:
    data = GaussianProcess(k_shot=3, n_query=7)
    data.setup("fit")
    tasks = data.dataset("train").__getitems__([4, 9, 2])
    assert [leaf.shape for batch in tasks for leaf in batch] == [(3, 3, 1), (3, 3, 1), (3, 7, 1), (3, 7, 1)]
    assert tasks.query.x.abs().max() < 2
    torch.testing.assert_close(data.dataset("train")[9].query.y, tasks.query.y[1], rtol=0, atol=1e-6)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_way must be 1, not 5"):
        data = GaussianProcess(n_way=5)
        data.setup("fit")
        data.train_dataloader()
    with pytest.raises(ConfigError, match=r"kernels=\['cubic'\] must name at least one of rbf, matern, periodic"):
        GaussianProcess(kernels=["cubic"])


def test_one_process_has_one_posterior() -> None:
    """With one kernel there is nothing to average, so what can be known is what the kernel tells."""
    source, keys = RBFProcess(k_shot=6, n_query=4).load_source("test"), episode_keys(0, 2, range(5))
    averaged, (mean, std) = source.averaged_posterior(keys, SHAPE), source.posterior(keys, SHAPE)
    np.testing.assert_allclose(averaged.mean, mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(averaged.std, std, rtol=0, atol=1e-9)
    many = RBFProcess(amplitude=2.0).load_source("test").sample(episode_keys(0, 2, range(4000)), SHAPE).support.y
    assert many.var().item() == pytest.approx(4 + NOISE**2, abs=0.2)


@pytest.mark.parametrize("name", ["length_scale", "amplitude"])
def test_a_kernel_without_size_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=0.0 .*must be positive"):
        RBFProcess(**{name: 0.0})
