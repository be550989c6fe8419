"""DAWSON against first-order MAML by torch.autograd: the gradients of both networks at their adapted weights."""

import torch
from torch import nn

from lightning_meta.algorithms import DAWSON
from lightning_meta.core import SGD
from tests.algorithms.test_figr import SMALL, dark, one_class, play_out
from tests.conftest import Make

CASES: dict[str, Make] = {"dawson": lambda: dark(DAWSON(**SMALL))}


def test_the_gradient_is_that_of_the_game_on_queries_at_the_adapted_weights(monkeypatch) -> None:
    torch.manual_seed(0)
    module = DAWSON(**SMALL | {"n_way": 1, "inner_optimizer": SGD, "inner_lr": 0.05}).double().eval()
    tasks, x_K = one_class(module)
    fixed = {steps: module.dice(tasks.query.x[:1, :k].expand(1, k, 1, -1, -1), steps) for steps, k in ((1, 2),)}
    fixed[2] = module.dice(x_K[None], 2)
    critic, generator = play_out(module, x_K, 0.05, 2)
    x = tasks.query.x[0]
    z_critic, z_generator, share = (part[0, 0] for part in fixed[1])
    false = generator(z_critic).detach()
    mixed = (share[:, None, None, None] * x + (1 - share)[:, None, None, None] * false).requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    loss = critic(false).mean() - critic(x).mean() + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    expected = [*gradient(loss, critic), *gradient(-critic(generator(z_generator)).mean(), generator)]
    monkeypatch.setattr(DAWSON, "dice", lambda self, x_NK, steps: fixed[steps])
    module.train().play(tasks).loss.mean().backward()
    found = [*module.critic.parameters(), *module.generator.parameters()]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-8, atol=1e-12)


def gradient(loss: torch.Tensor, network: nn.Module) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
