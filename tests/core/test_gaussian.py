"""Densities against PyTorch's own. Divergences and mixtures are tested with the neural processes, which use them."""

import torch
from torch.distributions import Normal

from lightning_meta.core.gaussian import Gaussian, log_density


def test_log_density_is_that_of_torch_distributions() -> None:
    mean, std, values = torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.01, torch.randn(4, 3).double()
    torch.testing.assert_close(log_density(values, Gaussian(mean, std)), Normal(mean, std).log_prob(values))
