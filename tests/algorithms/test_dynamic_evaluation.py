"""Dynamic evaluation: the static network at rate zero, a product of matrices for a linear one, online MAML unpulled."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import DynamicEvaluation, Online
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode, PulledBack
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import LearnedRates
from tests.conftest import Make, conv4, meta_gradient, next_tokens, random_functions, random_sequences

CASES: dict[str, Make] = {"dynamic_evaluation": lambda: DynamicEvaluation(conv4(), n_way=3, inner_lr=0.01)}
LANGUAGE_MODELS: dict[str, Make] = {
    "dynamical_lm": lambda: DynamicEvaluation(
        **next_tokens(),
        inner_lr=0.3,
        inner_steps=1,
        inner_optimizer=partial(LearnedRates, optimizer=partial(PulledBack, pull=0.1), also=["pull"]),
    )
}
VARIANTS: dict[str, Make] = {
    "dynamic_evaluation-trained_for": lambda: DynamicEvaluation(conv4(), n_way=3, inner_lr=0.1, inner_steps=1)
}


def of_images(**overrides: object) -> DynamicEvaluation:
    torch.manual_seed(0)
    return DynamicEvaluation(conv4(None), **(dict(n_way=3, inner_lr=0.1) | overrides)).double()


def linear(**settings: float) -> DynamicEvaluation:
    """Its backbone hands the input on, so the learner is the linear head."""
    backbone = MLP(in_features=3, hidden=(3,))
    backbone.forward = lambda x: x  # type: ignore[method-assign]
    regression = dict(n_way=1, loss_fn=F.mse_loss, metric=EpisodicMSE(), freeze="backbone")
    return DynamicEvaluation(backbone, **regression, **settings).double().eval()


def test_with_rate_zero_it_is_the_static_network(episodes: Episode) -> None:
    module = of_images(inner_lr=0.0, pull=0.3).eval()
    out = module.play(episodes)
    flat = episodes.query.x.flatten(0, 1)
    torch.testing.assert_close(out.preds.flatten(0, 1), module.learner(flat))
    torch.testing.assert_close(out.logs["stream_loss"], out.logs["static_stream_loss"])
    moved = of_images().eval().play(episodes)
    assert (moved.preds - out.preds).abs().max() > 1e-3
    torch.testing.assert_close(moved.logs["static_stream_loss"], out.logs["static_stream_loss"])


@pytest.mark.parametrize("pull", [0.0, 0.2, 1.0])
def test_a_linear_model_goes_where_a_product_of_matrices_leads(pull: float) -> None:
    """In closed form: with z = (x, 1), w <- ((1 - pull) I - 2 lr z z') w + 2 lr y z + pull w0."""
    rng, lr, module = np.random.default_rng(0), 0.05, linear(inner_lr=0.05, pull=pull)
    x, y, new = rng.normal(size=(6, 3)), rng.normal(size=6), rng.normal(size=(4, 3))
    start = np.append(module.learner[1].weight.detach().numpy()[0], module.learner[1].bias.detach().numpy())
    w, squares = start, []
    for z, target in zip(np.column_stack([x, np.ones(6)]), y, strict=True):
        squares.append((z @ w - target) ** 2)
        w = ((1 - pull) * np.eye(4) - 2 * lr * np.outer(z, z)) @ w + 2 * lr * target * z + pull * start
    adapted = module.adapt(Batch(torch.from_numpy(x), torch.from_numpy(y)[:, None]))
    found = module.predict(adapted, torch.from_numpy(new))
    np.testing.assert_allclose(found[:, 0], np.column_stack([new, np.ones(4)]) @ w, rtol=1e-12)
    np.testing.assert_allclose(adapted.loss.detach(), np.mean(squares), rtol=1e-12)


def test_without_a_pull_it_moves_as_online_maml(episodes: Episode) -> None:
    module = of_images(pull=0.0, inner_steps=1)
    online = Online(conv4(None), n_way=3, inner_lr=0.1).double()
    online.load_state_dict(module.state_dict())
    torch.testing.assert_close(meta_gradient(module, episodes), meta_gradient(online, episodes))
    torch.testing.assert_close(module.eval().play(episodes).preds, online.eval().play(episodes).preds)


def test_training_is_ordinary(episodes: Episode) -> None:
    module = of_images()
    found = meta_gradient(module, episodes)
    loss = F.cross_entropy(module.learner(episodes.query.x.flatten(0, 1)), episodes.query.y.flatten())
    names, params = zip(*module.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_its_rates_can_be_learned() -> None:
    """Each rate by the meta-gradient through the stream; on functions as on images."""
    rates = lambda lr: LearnedRates(lr, lambda r: PulledBack(r, 0.1))  # noqa: E731
    module = DynamicEvaluation(
        MLP(hidden=(8,)), n_way=1, inner_steps=1, inner_optimizer=rates, loss_fn=F.mse_loss, metric=EpisodicMSE()
    ).double()  # fmt: skip
    found = {name: g for name, g in meta_gradient(module, random_functions()).items() if "rates" in name}
    assert len(found) == 4 and all(g.abs() > 0 for g in found.values())


def test_its_pull_can_be_learned() -> None:
    """Of each tensor; the gradient is that of finite differences, of all pulls together."""
    module = LANGUAGE_MODELS["dynamical_lm"]().double()
    tasks = random_sequences()
    found = {name: g for name, g in meta_gradient(module, tasks).items() if "others.pull" in name}
    pulls = [module.get_parameter(name) for name in found]
    assert len(found) == len(module.theta()) and all((p - 0.1).abs() < 1e-6 for p in pulls)
    ends = []
    for step in (-1e-6, 1e-6):
        with torch.no_grad():
            for pull in pulls:
                pull.fill_(0.1 + step)
            ends.append(module.play(tasks).loss.mean().item())
    assert sum(g.item() for g in found.values()) == pytest.approx((ends[1] - ends[0]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("pull", [-0.1, 1.5])
def test_a_pull_that_is_no_part_of_the_way_is_refused(pull: float) -> None:
    with pytest.raises(ConfigError, match=f"pull={pull} is a part of the way back"):
        of_images(pull=pull)
