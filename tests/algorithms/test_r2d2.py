"""R2-D2 (r2d2): the head against ridge regression written out, the gradient through it against finite differences."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import R2D2
from lightning_meta.algorithms.metric.r2d2 import ridge_regression
from lightning_meta.core import Episode
from tests.conftest import conv4, meta_gradient, random_episodes, smooth


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("support", "features"), [(6, 20), (20, 6)])
def test_the_head_is_the_solution_of_ridge_regression(support: int, features: int) -> None:
    """By the normal equations, and by least squares with `sqrt(lambda) I` below the features."""
    x, y, penalty = random(support, features), random(support, 3), 0.7
    weights = ridge_regression(x, y, penalty)
    eye = torch.eye(features, dtype=torch.float64)
    torch.testing.assert_close(weights, torch.linalg.inv(x.T @ x + penalty * eye) @ x.T @ y, rtol=1e-9, atol=1e-11)
    stacked = torch.cat([x, penalty**0.5 * eye]), torch.cat([y, torch.zeros(features, 3).double()])
    torch.testing.assert_close(weights, torch.linalg.lstsq(*stacked).solution, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_penalty_does_no_harm_in_low_precision(dtype: torch.dtype) -> None:
    """Two examples are nearly the same; single precision alone would be wrong in the second digit."""
    x, y = torch.randn(6, 20).to(dtype), torch.eye(6, dtype=dtype)
    x[1] = x[0] + 2**-7 * x[2].sign()
    weights = ridge_regression(x, y, 1e-6)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, ridge_regression(x.double(), y.double(), 1e-6).to(dtype))


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_logits_and_loss_equal_the_direct_formula(mode: str, episodes: Episode) -> None:
    module = R2D2(conv4(), task_mode=mode).double()
    with torch.no_grad():
        module.log_lambda.fill_(0.5)
        module.beta.fill_(0.3)
    out = module.play(episodes)
    for t in range(3):
        x, query = module.backbone(episodes.support.x[t]), module.backbone(episodes.query.x[t])
        y = F.one_hot(episodes.support.y[t], 3).double()
        eye = torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.inv(x.T @ x + module.log_lambda.exp() * eye) @ x.T @ y
        expected = module.alpha * (query @ weights) + module.beta
        torch.testing.assert_close(out.preds[t, :, :3], expected, rtol=1e-9, atol=1e-10)
        assert out.preds[t, :, 3:].isneginf().all()
        torch.testing.assert_close(out.loss[t], F.cross_entropy(expected, episodes.query.y[t]))


def test_meta_gradient_equals_finite_differences(episodes: Episode) -> None:
    """Of the penalty, the scale, the bias and a weight of the first and the last layer of the embedding."""
    module = R2D2(smooth(conv4())).double()
    gradient = meta_gradient(module, episodes)
    for name in ("log_lambda", "alpha", "beta", "backbone.blocks.0.0.weight", "backbone.blocks.3.1.bias"):
        parameter, index = module.get_parameter(name), gradient[name].abs().argmax()
        value, step = parameter.data.flatten()[index].clone(), 1e-5
        losses = []
        for sign in (1, -1):
            parameter.data.view(-1)[index] = value + sign * step
            losses.append(module.play(episodes).loss.mean().item())
        parameter.data.view(-1)[index] = value
        difference = (losses[0] - losses[1]) / (2 * step)
        assert gradient[name].flatten()[index].item() == pytest.approx(difference, rel=1e-6, abs=1e-9), name


def test_plays_any_way_with_the_same_weights() -> None:
    module = R2D2(nn.Flatten()).double()
    for n_way in (2, 7):
        tasks = random_episodes(n_way=n_way, k_shot=1)
        out = module.play(Episode(tasks.support, tasks.support))
        assert out.preds.shape == (3, n_way, n_way)
        assert (out.preds.argmax(-1) == tasks.support.y).all()  # fits its own support set
