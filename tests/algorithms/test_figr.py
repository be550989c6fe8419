"""FIGR against plain gradient descent by torch.autograd and torch.optim on both networks of a GAN."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.algorithms import FIGR
from lightning_meta.core import SGD, Batch, Episode
from lightning_meta.errors import ConfigError
from lightning_meta.modules import LearnedRates
from tests.conftest import SIZE, Make, random_episodes

SMALL: dict[str, Any] = dict(n_way=3, image_size=SIZE, hidden=4, noise_size=4, inner_steps=2, samples=3, inner_lr=0.03)


def dark(module: FIGR) -> FIGR:
    """Whose generator paints dark images at first, so that there is something to learn for all classes."""
    nn.init.constant_(module.generator[0][-1].bias, -3.0)
    return module


CASES: dict[str, Make] = {"figr": lambda: dark(FIGR(**SMALL))}


def one_class(module: FIGR) -> tuple[Episode, Tensor]:
    tasks = random_episodes(n_tasks=1, n_way=1, k_shot=4)
    return tasks, tasks.support.x[0]


def play_out(module: FIGR, x_K: Tensor, lr: float, steps: int) -> tuple[nn.Module, nn.Module]:
    """Critic and generator after steps of torch.optim.SGD, each by turns, written as in any GAN's training loop."""
    critic, generator = deepcopy(module.critic), deepcopy(module.generator)
    dice = module.dice(x_K[None], steps)
    optimizers = [torch.optim.SGD(network.parameters(), lr=lr) for network in (critic, generator)]
    for step in range(steps):
        z_critic, z_generator, share = (part[0, step] for part in dice)
        false = generator(z_critic).detach()
        mixed = (share[:, None, None, None] * x_K + (1 - share)[:, None, None, None] * false).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        optimizers[0].zero_grad()
        (critic(false).mean() - critic(x_K).mean() + 10 * penalty).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        (-critic(generator(z_generator)).mean()).backward()
        optimizers[1].step()
    return critic, generator


@pytest.mark.parametrize("steps", [1, 3])
def test_an_outer_step_of_size_1_ends_where_plain_training_on_the_class_does(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one inner step that is a step of gradient descent on both networks; with an outer size of 0.5 half of it."""
    torch.manual_seed(0)
    settings = SMALL | {"n_way": 1, "inner_steps": steps, "inner_optimizer": SGD, "inner_lr": 0.05}
    module = FIGR(**settings).double().eval()
    tasks, x_K = one_class(module)
    expected = play_out(module, x_K, 0.05, steps)
    fixed = module.dice(x_K[None], steps)  # of evaluation; training is to draw the same
    monkeypatch.setattr(FIGR, "dice", lambda self, x_NK, steps: fixed)
    for size in (1.0, 0.5):
        moved = deepcopy(module).train()
        optimizer = torch.optim.SGD(moved.parameters(), lr=size)
        moved.play(tasks).loss.mean().backward()
        optimizer.step()
        for network, start, end in zip(
            (moved.critic, moved.generator), (module.critic, module.generator), expected, strict=True
        ):
            for ours, first, last in zip(network.parameters(), start.parameters(), end.parameters(), strict=True):
                assert ours.numel() == 1 or not torch.equal(first, last), "but for the critic's last bias all move"
                torch.testing.assert_close(ours, first + size * (last - first), rtol=1e-9, atol=1e-12)


def test_each_class_has_networks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes at once end where each ends alone."""
    torch.manual_seed(0)
    module, (support, _) = FIGR(**SMALL).double().eval(), random_episodes(n_tasks=1)
    x, y = support.x[0], support.y[0]
    together = module.adapt(Batch(x, y))
    monkeypatch.setattr(module, "n_way", 1)
    for n in range(3):
        alone = module.adapt(Batch(x[y == n], y[y == n]))
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close({k: v[n] for k, v in ours.items()}, {k: v[0] for k, v in theirs.items()})


@torch.no_grad()
def test_a_query_is_of_the_class_whose_generated_images_have_the_nearest_mean() -> None:
    torch.manual_seed(0)
    module, tasks = FIGR(**SMALL).double().eval(), random_episodes(n_tasks=1)
    support, query = (Batch(part.x[0], part.y[0]) for part in tasks)
    phi = module.adapt(support)
    out, means = module.query_loss(phi, query), module.generate(phi, 3).mean(1)
    for q, x in enumerate(query.x):
        distances = torch.stack([(x - mean).square().mean() for mean in means])
        torch.testing.assert_close(out.preds[q], -distances, rtol=1e-8, atol=1e-12)
    own = out.preds[torch.arange(len(query.y)), query.y]
    torch.testing.assert_close(out.loss, -own.mean())


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="penalty=-1 must not be negative"):
        FIGR(**SMALL | {"penalty": -1})
    with pytest.raises(ConfigError, match="inner_steps=0 must be at least 1"):
        FIGR(**SMALL | {"inner_steps": 0})
    with pytest.raises(ConfigError, match="FIGR takes no gradient through its inner steps"):
        FIGR(**SMALL | {"inner_optimizer": LearnedRates})
    with pytest.raises(ConfigError, match="as many images of each class"):
        FIGR(**SMALL).check_shots([1, 2])
