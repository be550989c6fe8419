"""R2-D2 (r2d2): the head against ridge regression written out, the gradient through it against finite differences."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import R2D2
from lightning_meta.algorithms.compare import r2d2
from lightning_meta.algorithms.compare.r2d2 import draw_shots, ridge_regression
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, random_episodes, smooth

CASES: dict[str, Make] = {"r2d2": lambda: R2D2(conv4())}
VARIANTS: dict[str, Make] = {
    "r2d2-random-shots": lambda: R2D2(conv4(), penalty=0.1, learn_penalty=True, random_shots=True),
}


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


def fitted(x: Tensor, y: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias as the authors' code has them: examples and targets divided by the root of their number."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1) / len(x) ** 0.5
    solution = torch.linalg.inv(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)) @ x.T @ y / len(y) ** 0.5
    return solution[:-1], solution[-1]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("k_shot", [1, 3])
def test_logits_and_loss_equal_the_formula_of_the_authors_code(mode: str, k_shot: int) -> None:
    module, tasks = R2D2(conv4(), penalty=0.3, task_mode=mode).double(), random_episodes(k_shot=k_shot)
    with torch.no_grad():
        module.beta.fill_(0.3)
    out = module.play(tasks)
    for t in range(3):
        x, query = module.backbone(tasks.support.x[t]), module.backbone(tasks.query.x[t])
        weights, bias = fitted(x, F.one_hot(tasks.support.y[t], 3).double(), module.log_lambda.exp())
        expected = module.alpha * (query @ weights + bias) + module.beta
        torch.testing.assert_close(out.preds[t, :, :3], expected, rtol=1e-9, atol=1e-10)
        assert out.preds[t, :, 3:].isneginf().all()
        torch.testing.assert_close(out.loss[t], F.cross_entropy(expected, tasks.query.y[t]))


def test_the_penalty_is_that_of_the_authors_code_and_learned_only_when_asked_for() -> None:
    assert R2D2(nn.Flatten()).log_lambda.exp().item() == pytest.approx(50)
    assert "log_lambda" not in dict(R2D2(nn.Flatten()).named_parameters())
    assert "log_lambda" in dict(R2D2(nn.Flatten(), learn_penalty=True).named_parameters())
    assert "log_lambda" in R2D2(nn.Flatten()).state_dict()
    with pytest.raises(ConfigError, match=r"penalty=0 must be positive"):
        R2D2(nn.Flatten(), penalty=0)


def test_meta_gradient_equals_finite_differences(episodes: Episode) -> None:
    """Of the penalty, the scale, the bias and a weight of the first and the last layer of the embedding."""
    module = R2D2(smooth(conv4()), penalty=0.2, learn_penalty=True).double()
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


def test_drawn_shots_are_as_many_of_each_class_and_all_numbers_and_examples_are_as_frequent() -> None:
    """3 classes of 4 examples, 3,000 tasks: each number of shots about 750 times, each example kept in 5/8 of them."""
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 1, 0, 2])
    kept = torch.vmap(draw_shots, randomness="different")(labels.expand(3000, -1))
    per_class = torch.stack([kept[:, labels == c].sum(1) for c in range(3)], dim=1)
    assert (per_class == per_class[:, :1]).all()
    counts = per_class[:, 0].bincount(minlength=5)
    assert counts[0] == 0 and ((counts[1:] - 750).abs() < 100).all()  # 4 standard deviations
    assert ((kept.double().mean(0) - 5 / 8).abs() < 0.04).all()


def test_a_class_with_fewer_examples_than_the_number_drawn_keeps_all() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1])
    for _ in range(20):
        kept = draw_shots(labels)
        assert kept[4] and 1 <= kept[:4].sum() <= 4


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_examples_that_are_not_drawn_have_no_weight(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is the one that the drawn examples alone give; in evaluation it is that of all of them."""

    def known_draw(labels_S: Tensor) -> Tensor:
        return (torch.arange(len(labels_S)) * 7 + labels_S) % 3 != 0

    monkeypatch.setattr(r2d2, "draw_shots", known_draw)
    module = R2D2(nn.Flatten(), random_shots=True, task_mode=mode).double()
    tasks = random_episodes(k_shot=4)
    out, evaluated = module.play(tasks), R2D2(nn.Flatten(), task_mode=mode).double().play(tasks)
    for t in range(3):
        x, labels = tasks.support.x[t].flatten(1), tasks.support.y[t]
        kept = known_draw(labels)
        assert 6 <= kept.sum() <= 10
        weights, bias = fitted(x[kept], F.one_hot(labels[kept], 3).double(), module.log_lambda.exp())
        expected = module.alpha * (tasks.query.x[t].flatten(1) @ weights + bias) + module.beta
        torch.testing.assert_close(out.preds[t, :, :3], expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(module.eval().play(tasks), evaluated, rtol=1e-12, atol=1e-14)


def test_plays_any_way_with_the_same_weights() -> None:
    module = R2D2(nn.Flatten(), penalty=0.1).double()
    for n_way in (2, 7):
        tasks = random_episodes(n_way=n_way, k_shot=1)
        out = module.play(Episode(tasks.support, tasks.support))
        assert out.preds.shape == (3, n_way, n_way)
        assert (out.preds.argmax(-1) == tasks.support.y).all()  # fits its own support set
