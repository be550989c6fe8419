"""Online MAML takes a step on each example, in their order: against plain autograd, and MAML for one example."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, Online
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {"online": lambda: Online(conv4(), n_way=3, inner_lr=0.05)}
VARIANTS: dict[str, Make] = {"online-twice": lambda: Online(conv4(), n_way=3, inner_lr=0.05, inner_steps=2)}
LR = 0.1


def online(**overrides) -> Online:
    torch.manual_seed(0)
    return Online(conv4(None), **(dict(n_way=3, inner_lr=LR) | overrides)).double()


def first(tasks: Episode) -> tuple[Batch, Batch]:
    return Batch(tasks.support.x[0], tasks.support.y[0]), Batch(tasks.query.x[0], tasks.query.y[0])


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_one_example_is_a_step_of_maml(mode: str) -> None:
    tasks = random_episodes()
    tasks = tasks._replace(support=Batch(tasks.support.x[:, :1], tasks.support.y[:, :1]))
    module, plain = online(task_mode=mode), MAML(conv4(None), n_way=3, inner_lr=LR).double()
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.play(tasks), plain.play(tasks), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(meta_gradient(module, tasks), meta_gradient(plain, tasks), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_meta_gradient_goes_through_every_step(episodes: Episode, steps: int) -> None:
    module, (support, query) = online(inner_steps=steps), first(episodes)
    theta = dict(module.learner.named_parameters())
    phi = theta
    for x, y in zip(*support, strict=True):
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(module.learner, phi, x[None]), y[None])
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - LR * g for (name, p), g in zip(phi.items(), grads, strict=True)}
    loss = F.cross_entropy(functional_call(module.learner, phi, query.x), query.y)
    expected = torch.autograd.grad(loss, list(theta.values()))
    found = meta_gradient(module, Episode(*(Batch(part.x[:1], part.y[:1]) for part in episodes)))
    for name, truth in zip(theta, expected, strict=True):
        torch.testing.assert_close(found[f"learner.{name}"], truth, rtol=1e-8, atol=1e-12)


def test_order_matters(episodes: Episode) -> None:
    module, (support, query) = online().eval(), first(episodes)
    forth, back = (module.adapt(Batch(x, y)) for x, y in (support, (support.x.flip(0), support.y.flip(0))))
    assert (module.predict(forth, query.x) - module.predict(back, query.x)).abs().max() > 1e-4
