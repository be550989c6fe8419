"""T-Nets (t_net): MAML with the identity, and preconditioned gradient descent with any other matrix."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, TNet
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, conv4, meta_gradient, smooth

LR, STEPS = 0.1, 2
CASES: dict[str, Make] = {"t_net": lambda: TNet(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}


def t_net(**overrides) -> TNet:
    torch.manual_seed(0)
    return TNet(smooth(conv4()), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS) | overrides)).double()


def plain() -> MAML:
    return MAML(smooth(conv4()), n_way=3, inner_lr=LR, inner_steps=STEPS).double()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_with_identities_it_is_maml(mode: str, episodes: Episode) -> None:
    module, maml = t_net(task_mode=mode), plain()
    maml.task_mode = mode
    shared = {name.replace(".layer.", "."): value for name, value in module.learner.state_dict().items()}
    maml.learner.load_state_dict({name: value for name, value in shared.items() if not name.endswith(".metric")})
    torch.testing.assert_close(module.play(episodes), maml.play(episodes), rtol=1e-12, atol=1e-12)
    expected = meta_gradient(maml, episodes)
    found = {name.replace(".layer.", "."): g for name, g in meta_gradient(module, episodes).items()}
    torch.testing.assert_close({name: found[name] for name in expected}, expected, rtol=1e-9, atol=1e-12)


def by_preconditioning(module: TNet, tasks: Episode) -> Tensor:
    """Mean loss of a plain network with the weights V = T W, whose gradients are multiplied by T T'; by autograd."""
    params, network = dict(module.learner.named_parameters()), plain().learner
    metrics = {name.removesuffix(".metric"): value for name, value in params.items() if name.endswith(".metric")}
    start, preconditioners = {}, {}
    for name, _ in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        if layer in metrics:
            start[name] = torch.tensordot(metrics[layer], params[f"{layer}.layer.{kind}"], dims=1)
            preconditioners[name] = metrics[layer] @ metrics[layer].T
        else:
            start[name] = params[name]
    losses = []
    for x, y, qx, qy in zip(*tasks.support, *tasks.query, strict=True):
        phi = dict(start)
        for _ in range(STEPS):
            loss = F.cross_entropy(functional_call(network, phi, (x,)), y)
            found = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            grads = dict(zip(phi, found, strict=True))
            grads |= {name: torch.tensordot(matrix, grads[name], dims=1) for name, matrix in preconditioners.items()}
            phi = {name: value - LR * grads[name] for name, value in phi.items()}
        losses.append(F.cross_entropy(functional_call(network, phi, (qx,)), qy))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_metric_preconditions_the_inner_gradient(mode: str, episodes: Episode) -> None:
    """In loss and in the meta-gradient of weights and metrics."""
    module = t_net(task_mode=mode)
    for name, value in module.named_parameters():
        if name.endswith(".metric"):
            nn.init.normal_(value, std=0.5)
    gradient, loss = meta_gradient(module, episodes), by_preconditioning(module, episodes)
    torch.testing.assert_close(module.play(episodes).loss.mean(), loss, rtol=1e-9, atol=0)
    names, params = zip(*module.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-11)
    assert min(expected[name].abs().max() for name in names if name.endswith(".metric")) > 1e-5


def test_the_inner_loop_leaves_the_metrics_and_the_caller_s_backbone_alone(episodes: Episode) -> None:
    backbone = conv4()
    before = list(backbone.state_dict())
    module = TNet(backbone, n_way=3).double()
    assert list(backbone.state_dict()) == before
    phi = module.adapt(Batch(episodes.support.x[0], episodes.support.y[0]))
    learned = {name for name, _ in module.learner.named_parameters()}
    assert {name for name in learned if name.endswith(".metric")} == learned - set(phi)
    assert len(learned - set(phi)) == 5  # four convolutions and the head
