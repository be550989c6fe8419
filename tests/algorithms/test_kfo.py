"""KFO's update from its definition; parity with learn2learn is in `tests/reference`."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import KFO
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, conv4, needs_learn2learn

CASES: dict[str, Make] = {
    "kfo": pytest.param(lambda: KFO(conv4(), n_way=3, inner_lr=0.1, inner_steps=2), marks=needs_learn2learn),
}


@needs_learn2learn
def test_the_update_is_a_positive_semi_definite_map_of_the_gradient_with_two_kronecker_factors(
    episodes: Episode,
) -> None:
    """One step. The map is written out as one matrix for each tensor, or for each filter of a convolution."""
    module = KFO(conv4(), n_way=3, inner_lr=0.1, inner_steps=1).double()
    for factor in module.inner_optimizer.parameters():
        factor.data += 0.1 * torch.randn_like(factor)
    support = Batch(episodes.support.x[0], episodes.support.y[0])
    theta = dict(module.learner.named_parameters())
    loss = F.cross_entropy(module.learner(support.x), support.y)
    grads = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    phi = module.adapt(support)
    for name, value in theta.items():
        factors = module.inner_optimizer.transforms[name.replace(".", "/")].parameters()
        left, right = (factor.T @ factor for factor in factors)
        matrix = torch.kron(left, right)
        assert torch.linalg.eigvalsh(matrix).min() >= -1e-12
        expected = value - 0.1 * (grads[name].reshape(-1, len(matrix)) @ matrix.T).view_as(value)
        torch.testing.assert_close(phi[name], expected, rtol=1e-10, atol=1e-13)
