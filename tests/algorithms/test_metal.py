"""MeTAL (metal): MAML while its loss networks are silent, and plain autograd with what they say."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, MeTAL
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, smooth

LR, STEPS = 0.1, 2


def metal(**overrides) -> MeTAL:
    torch.manual_seed(0)
    return MeTAL(smooth(conv4()), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS) | overrides)).double()


def speaking(module: MeTAL) -> MeTAL:
    """As after training."""
    torch.manual_seed(1)
    for step in module.losses:
        nn.init.normal_(step.loss[2].weight, std=0.5)
        nn.init.normal_(step.strengths, std=0.5)
    return module


CASES: dict[str, Make] = {"metal": lambda: MeTAL(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
VARIANTS: dict[str, Make] = {
    "metal-speaking": lambda: speaking(MeTAL(conv4(), n_way=3, inner_lr=0.05, inner_steps=2)),
}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_before_training_it_is_maml(mode: str, episodes: Episode) -> None:
    """And its loss networks have a gradient, so that it does not stay MAML."""
    module = metal(task_mode=mode)
    maml = MAML(smooth(conv4()), n_way=3, inner_lr=LR, inner_steps=STEPS, task_mode=mode).double()
    maml.learner.load_state_dict(module.learner.state_dict())
    torch.testing.assert_close(module.play(episodes), maml.play(episodes), rtol=1e-12, atol=1e-12)
    gradient = meta_gradient(module, episodes)
    for name, expected in meta_gradient(maml, episodes).items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-9, atol=1e-12)
    assert gradient["losses.1.loss.2.weight"].abs().max() > 1e-5


def said(step: nn.Module, loss: Tensor, phi: dict[str, Tensor], logits: Tensor, y: Tensor) -> Tensor:
    """The learned part, one example after another."""

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean()) / x.std()

    state = torch.stack([loss] + [p.mean() for p in phi.values()])
    first, _, last = step.adapter
    made = last.weight @ (first.weight @ standard(state) + first.bias).clamp(min=0) + last.bias
    scales, shifts = made[:4] * step.strengths[0], made[4:] * step.strengths[1]
    adapted = [(1 + a) * w + b for a, w, b in zip(scales, step.loss.parameters(), shifts, strict=True)]
    rows = standard(torch.stack([torch.cat([state, row, torch.eye(3)[k]]) for row, k in zip(logits, y, strict=True)]))
    values = [adapted[2] @ (adapted[0] @ row + adapted[1]).clamp(min=0) + adapted[3] for row in rows]
    return sum(values)[0] / len(values)


def by_autograd(module: MeTAL, tasks: Episode) -> Tensor:
    losses = []
    for x, y, qx, qy in zip(*tasks.support, *tasks.query, strict=True):
        phi = dict(module.learner.named_parameters())
        for step in module.losses:
            logits = functional_call(module.learner, phi, (x,))
            loss = F.cross_entropy(logits, y)
            loss = loss + said(step, loss, phi, logits, y)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - LR * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        losses.append(F.cross_entropy(functional_call(module.learner, phi, (qx,)), qy))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_meta_gradient_equals_plain_autograd(mode: str, episodes: Episode) -> None:
    module = speaking(metal(task_mode=mode))
    gradient, loss = meta_gradient(module, episodes), by_autograd(module, episodes)
    torch.testing.assert_close(module.play(episodes).loss.mean(), loss, rtol=1e-9, atol=0)
    names, params = zip(*module.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-10)


def test_steps_beyond_those_of_training_take_its_last_loss(episodes: Episode) -> None:
    module = speaking(metal(eval_inner_steps=STEPS + 2)).eval()
    before = module.play(episodes).loss
    module.losses.extend([module.losses[-1], module.losses[-1]])
    torch.testing.assert_close(module.play(episodes).loss, before, rtol=0, atol=0)
    module.losses = module.losses[:1]
    assert not torch.allclose(module.play(episodes).loss, before)


def test_first_order_is_refused() -> None:
    """The losses are read by inner gradients alone, which would be constants."""
    with pytest.raises(ConfigError, match="first_order=True"):
        metal(first_order=True)
