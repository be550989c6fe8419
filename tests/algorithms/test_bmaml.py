"""BMAML: one particle is MAML; the steps are Stein's, and what is chased is where the queries would lead."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import BMAML, MAML
from lightning_meta.core import Batch, Episode, unroll
from lightning_meta.core.svgd import SVGD, gaussian_kernel
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, smooth

CASES: dict[str, Make] = {"bmaml": lambda: BMAML(conv4(), n_way=3, inner_lr=0.1, particles=3)}
VARIANTS: dict[str, Make] = {"bmaml-chaser": lambda: BMAML(conv4(), n_way=3, inner_lr=0.1, particles=2, chaser_steps=2)}
LR, STEPS = 0.3, 2


def bmaml(**overrides) -> BMAML:
    torch.manual_seed(0)
    module = BMAML(conv4(), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS, particles=1) | overrides)).double()
    smooth(module)
    return module


def as_maml(module: BMAML) -> MAML:
    """MAML that starts where the first particle does."""
    plain = MAML(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS).double()
    smooth(plain)
    plain.learner.load_state_dict({name: value[0] for name, value in module.theta().items()})
    return plain


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_one_particle_is_maml(episodes: Episode, mode: str) -> None:
    module = bmaml(task_mode=mode)
    plain = as_maml(module)
    ours, theirs = module.play(episodes), plain.play(episodes)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.preds.softmax(-1), theirs.preds.softmax(-1), rtol=1e-10, atol=1e-12)
    gradient, truth = meta_gradient(module, episodes), meta_gradient(plain, episodes)
    assert len(gradient) == len(truth)
    for name, value in truth.items():
        found = gradient["particles." + name.removeprefix("learner.").replace(".", "/")]
        torch.testing.assert_close(found[0], value, rtol=1e-8, atol=1e-11)


def test_a_prediction_is_the_mean_of_the_particles_probabilities(episodes: Episode) -> None:
    module, support = bmaml(particles=3), Batch(episodes.support.x[0], episodes.support.y[0])
    particles = module.eval().adapt(support).params
    of_each = [
        functional_call(module.learner, {name: value[m] for name, value in particles.items()}, episodes.query.x[0])
        for m in range(3)
    ]
    expected = torch.stack([logits.softmax(-1) for logits in of_each]).mean(0)
    assert (of_each[0].softmax(-1) - expected).abs().max() > 0.01
    torch.testing.assert_close(module.predict(module.adapt(support), episodes.query.x[0]), expected)


def test_a_step_is_that_of_the_papers_sum() -> None:
    """`1/M sum_j k(x_j, x_i) grad log p(x_j) + grad_j k(x_j, x_i)`, the kernel differentiated by torch."""
    x = torch.randn(4, 3, dtype=torch.float64)
    grads, rate, temperature = torch.randn_like(x).sin(), 0.1, 0.7
    moved, _ = SVGD(rate, temperature).update({"x": grads}, (), {"x": x}, x.sum())
    _, width = gaussian_kernel(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a - b).square().sum() / width).exp()

    for i in range(4):
        terms = [kernel(x[j], x[i]) * -grads[j] + temperature * torch.func.grad(kernel)(x[j], x[i]) for j in range(4)]
        torch.testing.assert_close(moved["x"][i], x[i] + rate * torch.stack(terms).mean(0))
    distances = torch.pdist(x).square().sort().values
    torch.testing.assert_close(width, distances[3] / torch.tensor(5.0, dtype=torch.float64).log())


def test_particles_find_mean_and_variance_of_a_gaussian() -> None:
    mean, std = 2.0, 3.0
    start = {"x": torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]}
    end = unroll(lambda p: ((p["x"] - mean) / std).square().sum() / 2, start, SVGD(2.0), 800, first_order=True)["x"]
    assert abs(end.mean() - mean) < 0.1
    assert abs(end.std() / std - 1) < 0.1
    collapsed = unroll(
        lambda p: ((p["x"] - mean) / std).square().sum() / 2, start, SVGD(2.0, 0.0), 800, first_order=True
    )["x"]
    assert collapsed.std() < 0.1


def test_the_chaser_loss_is_the_squared_length_of_the_leaders_step(episodes: Episode) -> None:
    module = bmaml(chaser_steps=1)
    support, query = (Batch(part.x[0], part.y[0]) for part in episodes)
    adapted = module.adapt(support)
    phi = {name: value[0].detach().requires_grad_() for name, value in adapted.params.items()}
    x, y = torch.cat([support.x, query.x]), torch.cat([support.y, query.y])
    step = torch.autograd.grad(F.cross_entropy(functional_call(module.learner, phi, x), y), list(phi.values()))
    expected = LR**2 * sum(g.square().sum() for g in step)
    torch.testing.assert_close(module.query_loss(adapted, query).loss, expected, rtol=1e-8, atol=1e-12)
    out = module.eval().query_loss(adapted, query)
    torch.testing.assert_close(out.loss, F.nll_loss(out.preds, query.y))


def test_particles_start_apart_and_the_layers_of_the_network_do_not_learn() -> None:
    module = bmaml(particles=3)
    weights = module.particles["0/blocks/0/0/weight"]
    assert (weights[0] - weights[1]).abs().max() > 0.01
    assert not any(p.requires_grad for p in module.learner.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "particles=0"),
        ({"chaser_steps": -1}, "chaser_steps=-1"),
        ({"loss_fn": F.mse_loss}, "leave loss_fn"),
        ({"head_init": torch.nn.init.normal_}, "leave loss_fn"),
    ],
)
def test_what_cannot_be_is_said(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BMAML(conv4(), n_way=3, **settings)
