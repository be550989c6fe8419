"""PLATIPUS: without spread it is MAML; its loss is a likelihood and the divergence of two steps of the mean."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, PLATIPUS
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient

CASES: dict[str, Make] = {"platipus": lambda: PLATIPUS(conv4(), n_way=3, inner_lr=0.1, draws=3)}
LR, STEPS = 0.3, 2


def platipus(**overrides) -> PLATIPUS:
    torch.manual_seed(0)
    return PLATIPUS(conv4(), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS, draws=4) | overrides)).double()


def first(tasks: Episode) -> tuple[Batch, Batch]:
    return Batch(tasks.support.x[0], tasks.support.y[0]), Batch(tasks.query.x[0], tasks.query.y[0])


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_without_spread_it_is_maml(episodes: Episode, mode: str) -> None:
    module = platipus(std=1e-12, mean_lr=0.0, kl_weight=0.0, task_mode=mode)
    plain = MAML(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS).double()
    plain.learner.load_state_dict(module.learner.state_dict())
    gradient, truth = meta_gradient(module, episodes), meta_gradient(plain, episodes)
    for name, value in truth.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-6, atol=1e-9)
    ours, theirs = module.eval().play(episodes), plain.eval().play(episodes)
    torch.testing.assert_close(ours.preds.softmax(-1), theirs.preds.softmax(-1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-6, atol=1e-9)


def moved(module: PLATIPUS, batch: Batch, rate: float) -> dict[str, Tensor]:
    theta = dict(module.learner.named_parameters())
    loss = F.cross_entropy(functional_call(module.learner, theta, batch.x), batch.y)
    grads = torch.autograd.grad(loss, list(theta.values()))
    return {name: value - rate * g for (name, value), g in zip(theta.items(), grads, strict=True)}


def test_the_divergence_is_between_steps_on_queries_and_on_the_support(episodes: Episode) -> None:
    module, (support, query) = platipus(kl_weight=3.0), first(episodes)
    with torch.no_grad():
        module.prior_rate.fill_(0.2), module.query_rate.fill_(0.4)
        for name in module.prior_log_std:
            module.prior_log_std[name].uniform_(-4, -2)
            module.query_log_std[name].uniform_(-4, -2)
    out = module.query_loss(module.adapt(support), query)
    ours, prior = moved(module, query, 0.4), moved(module, support, 0.2)
    expected = sum(
        kl_divergence(
            Normal(ours[name], module.query_log_std[name.replace(".", "/")].exp()),
            Normal(prior[name], module.prior_log_std[name.replace(".", "/")].exp()),
        ).sum()
        for name in ours
    )
    torch.testing.assert_close(out.logs["kl"], expected)
    torch.testing.assert_close(out.loss, out.logs["query_loss"] + 3 * expected / len(query.y))


def test_a_training_task_starts_where_the_queries_draw_it(episodes: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.randn_like", lambda x: torch.cos(10 * x).detach())
    module, (support, query) = platipus(std=0.05), first(episodes)
    out = module.query_loss(module.adapt(support), query)
    theta = {name: value + 0.05 * torch.cos(10 * value) for name, value in moved(module, query, 0.1).items()}
    for _ in range(STEPS):
        theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
        loss = F.cross_entropy(functional_call(module.learner, theta, support.x), support.y)
        grads = torch.autograd.grad(loss, list(theta.values()))
        theta = {name: value - LR * g for (name, value), g in zip(theta.items(), grads, strict=True)}
    torch.testing.assert_close(out.preds, functional_call(module.learner, theta, query.x), rtol=1e-4, atol=1e-6)


def test_draws_differ_have_the_learned_spread_and_are_the_same_each_time(episodes: Episode) -> None:
    module, (support, _) = platipus(draws=200, std=0.1, eval_inner_steps=0).eval(), first(episodes)
    phi = module.adapt(support)
    mean = moved(module, support, 0.1)
    for name, value in mean.items():
        noise = (phi[name] - value) / 0.1
        assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
        assert abs(noise.std() - 1) < 5 / noise.numel() ** 0.5
    again = module.adapt(support)
    assert all(torch.equal(phi[name], again[name]) for name in mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"std": 0.0}, "std=0.0 must be positive"), ({"draws": 0}, "draws=0"), ({"loss_fn": F.mse_loss}, "leave loss_fn")],
)
def test_what_cannot_be_is_said(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PLATIPUS(conv4(), n_way=3, **settings)
