"""Meta-Curvature's update from its definition; parity with learn2learn is in `tests/reference`."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import MetaCurvature
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, conv4, needs_learn2learn

CASES: dict[str, Make] = {
    "meta-curvature": pytest.param(
        lambda: MetaCurvature(conv4(), n_way=3, inner_lr=0.1, inner_steps=2), marks=needs_learn2learn
    ),
}


def curved(curvature: dict[str, Tensor], grad: Tensor) -> Tensor:
    """The gradient times a matrix along each of its axes; the places of a kernel are one axis."""
    if grad.ndim == 1:
        return curvature["mc"] * grad
    if grad.ndim == 2:
        return torch.einsum("ab,bc,cd->ad", curvature["mc_in"], grad, curvature["mc_out"])
    factors = curvature["mc_in"], curvature["mc_out"], curvature["mc_f"]
    return torch.einsum("fg,ic,pq,giq->fcp", *factors, grad.flatten(2)).view_as(grad)


@needs_learn2learn
def test_the_update_is_the_gradient_times_a_curvature_along_each_axis(episodes: Episode) -> None:
    """One step: filters, channels and places of a convolution, inputs and outputs of a linear layer, elements."""
    module = MetaCurvature(conv4(), n_way=3, inner_lr=0.1, inner_steps=1).double()
    for factor in module.inner_optimizer.parameters():
        factor.data += 0.1 * torch.randn_like(factor)
    support = Batch(episodes.support.x[0], episodes.support.y[0])
    theta = dict(module.learner.named_parameters())
    loss = F.cross_entropy(module.learner(support.x), support.y)
    grads = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    phi = module.adapt(support)
    for name, value in theta.items():
        curvature = dict(module.inner_optimizer.transforms[name.replace(".", "/")].named_parameters())
        torch.testing.assert_close(phi[name], value - 0.1 * curved(curvature, grads[name]), rtol=1e-10, atol=1e-13)
