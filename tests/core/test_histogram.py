"""Bars against numerical integration: a density, its mean and its standard deviation."""

import pytest
import torch

from lightning_meta.core.histogram import Bars


@pytest.mark.parametrize("count", [4, 11])
def test_density_and_moments_are_those_of_numerical_integration(count: int) -> None:
    bars, generator = Bars(count).double(), torch.Generator().manual_seed(0)
    bars.borders = torch.special.ndtri(torch.arange(1, count).double() / count) * bars.std
    logits_TB = torch.randn(3, count, generator=generator, dtype=torch.float64)
    far = torch.cat([torch.linspace(0, 10, 100_001), torch.logspace(1, 6, 100_001)[1:]]).double()
    x_X = torch.cat([-far.flip(0), far[1:]])
    density_TX = bars.log_density(logits_TB[:, None].expand(-1, len(x_X), -1), x_X.expand(3, -1)).exp()
    torch.testing.assert_close(torch.trapezoid(density_TX, x_X), torch.ones(3).double(), rtol=0, atol=1e-4)
    mean_T, std_T = bars.moments(logits_TB)
    torch.testing.assert_close(torch.trapezoid(density_TX * x_X, x_X), mean_T, rtol=0, atol=1e-4)
    square_T = torch.trapezoid(density_TX * (x_X - mean_T[:, None]).square(), x_X)
    torch.testing.assert_close(square_T.sqrt(), std_T, rtol=0, atol=1e-3)


def test_equal_logits_say_what_the_wide_normal_distribution_does() -> None:
    """Bars are equally likely under it, so its draws are spread over them evenly and its moments are theirs, nearly."""
    bars = Bars(400, std=1.5)
    mean, std = bars.moments(torch.zeros(400))
    assert abs(mean) < 1e-4 and float(std) == pytest.approx(1.5, rel=0.01)
    draws = 1.5 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bucketize(draws, bars.borders).bincount(minlength=400)
    assert (counts.double().var() / counts.double().mean()) < 1.3  # as of a Poisson distribution: 1
