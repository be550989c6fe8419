"""ALFA (alfa): MAML while its generator is silent, and plain autograd with what it says."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import ALFA, MAML
from lightning_meta.core import Episode
from tests.conftest import Make, conv4, meta_gradient, smooth

LR, STEPS, DECAY = 0.1, 2, 0.05


def alfa(**overrides) -> ALFA:
    torch.manual_seed(0)
    settings = dict(n_way=3, inner_lr=LR, inner_steps=STEPS, weight_decay=DECAY)
    return ALFA(smooth(conv4()), **(settings | overrides)).double()


def speaking(module: ALFA) -> ALFA:
    """As after training: factors depend on the state, and rates and decays on the tensor and the step."""
    torch.manual_seed(1)
    optimizer = module.inner_optimizer
    nn.init.normal_(optimizer.generator[-1].weight, std=0.5)
    nn.init.normal_(optimizer.generator[-1].bias, mean=0.5, std=0.3)
    for table in (optimizer.rates, optimizer.decays):
        for values in table.values():
            nn.init.uniform_(values, 0.05, 0.2)
    return module


CASES: dict[str, Make] = {"alfa": lambda: ALFA(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
VARIANTS: dict[str, Make] = {"alfa-speaking": lambda: speaking(ALFA(conv4(), n_way=3, inner_steps=2))}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_before_training_it_is_maml(mode: str, episodes: Episode) -> None:
    """The same predictions and the same meta-gradient of the initialisation; the generator's last layer has one too."""
    module = alfa(task_mode=mode)
    for values in module.inner_optimizer.rates.values():
        nn.init.constant_(values, LR)  # 0.1 in float64; the module was made in float32
    maml = MAML(smooth(conv4()), n_way=3, inner_lr=LR, inner_steps=STEPS, task_mode=mode).double()
    maml.learner.load_state_dict(module.learner.state_dict())
    torch.testing.assert_close(module.play(episodes), maml.play(episodes), rtol=1e-12, atol=1e-12)
    gradient = meta_gradient(module, episodes)
    for name, expected in meta_gradient(maml, episodes).items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-10, atol=1e-12)
    assert gradient["inner_optimizer.generator.2.bias"].abs().min() > 0


def by_autograd(module: ALFA, tasks: Episode, create_graph: bool) -> Tensor:
    """Mean loss after steps whose hyper-parameters are computed here, one tensor after another."""
    optimizer, losses = module.inner_optimizer, []
    first, _, last = optimizer.generator
    for x, y, qx, qy in zip(*tasks.support, *tasks.query, strict=True):
        phi = dict(module.learner.named_parameters())
        for step in range(STEPS):
            loss = F.cross_entropy(functional_call(module.learner, phi, (x,)), y)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=create_graph)
            state = torch.stack([p.mean() for p in phi.values()] + [g.detach().mean() for g in grads])
            said = last.weight @ (first.weight @ state + first.bias).clamp(min=0) + last.bias
            for i, ((name, p), g) in enumerate(zip(list(phi.items()), grads, strict=True)):
                key = name.replace(".", "/")
                rate = said[i] * optimizer.rates[key][step]
                decay = said[len(grads) + i] * optimizer.decays[key][step]
                phi[name] = p - decay * p - rate * g
        losses.append(F.cross_entropy(functional_call(module.learner, phi, (qx,)), qy))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_meta_gradient_equals_plain_autograd(mode: str, first_order: bool, episodes: Episode) -> None:
    module = speaking(alfa(task_mode=mode, first_order=first_order))
    gradient = meta_gradient(module, episodes)
    names, params = zip(*module.named_parameters(), strict=True)
    loss = by_autograd(module, episodes, create_graph=not first_order)
    torch.testing.assert_close(module.play(episodes).loss.mean(), loss, rtol=1e-10, atol=0)
    expected = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-11)
    assert expected["inner_optimizer.generator.0.weight"].abs().max() > 1e-5


def test_steps_beyond_those_of_training_take_its_last_rates(episodes: Episode) -> None:
    module = speaking(alfa(eval_inner_steps=STEPS + 2)).eval()
    before = module.play(episodes).loss
    with torch.no_grad():
        for table in (module.inner_optimizer.rates, module.inner_optimizer.decays):
            for name, values in table.items():
                table[name] = nn.Parameter(torch.cat([values, values[-1:], values[-1:]]))
            table.steps = STEPS + 2
    torch.testing.assert_close(module.play(episodes).loss, before, rtol=0, atol=0)
