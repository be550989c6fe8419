"""Meta Networks against loops with torch.autograd, and layer augmentation without fast weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import MetaNet
from lightning_meta.algorithms.memory.meta_net import P
from lightning_meta.core import Batch, Episode
from lightning_meta.core.preprocessing import log_and_sign
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"meta_net": lambda: MetaNet(conv4(), n_way=3, features=8, hidden=8, meta_hidden=4)}


@pytest.fixture
def module() -> MetaNet:
    """With fast weights of both signs and of the size of slow ones; at first they are all about the same number."""
    torch.manual_seed(1)
    module = MetaNet(conv4(), n_way=3, features=8, hidden=7, meta_hidden=4).double()
    for network in (module.d, module.m):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5 if parameter.ndim > 1 else 0.125)
    return module


def first(part: Batch) -> Batch:
    return Batch(*(leaf[0] for leaf in part))


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_predictions_and_meta_gradient_equal_the_algorithm_written_out(
    module: MetaNet, episodes: Episode, mode: str
) -> None:
    """Gradients of the slow weights are inputs: the meta-gradient does not pass through them."""
    module.task_mode = mode
    out = module.play(episodes)
    support, query = first(episodes.support), first(episodes.query)
    u, (hidden, output) = module.representation, module.base

    def slow_prediction(r: Tensor) -> Tensor:
        return output(F.relu(hidden(r)))

    features = module.backbone(support.x)
    state = (torch.zeros(8, features.shape[1], 4).double(),) * 2
    bias_state = (torch.zeros(8, 4).double(),) * 2
    for x, y in zip(features, support.y, strict=True):
        loss = F.cross_entropy(slow_prediction(u(x)), y)
        weight, bias = torch.autograd.grad(loss, [u.weight, u.bias], retain_graph=True)
        state = module.d.cell(log_and_sign(weight, P), state)
        bias_state = module.d.cell(log_and_sign(bias, P), bias_state)
    q_weight, q_bias = module.d.output(state[0])[..., 0], module.d.output(bias_state[0])[..., 0]

    def represent(x: Tensor) -> Tensor:
        return u(x) + x @ q_weight.T + q_bias

    keys = represent(module.backbone(support.x))
    memory = []
    for r, y in zip(keys, support.y, strict=True):
        loss = F.cross_entropy(slow_prediction(r), y)
        gradients = torch.autograd.grad(loss, list(module.base.parameters()), retain_graph=True)
        memory.append([module.m.layers(log_and_sign(gradient, P))[..., 0] for gradient in gradients])
    logits = []
    for r in represent(module.backbone(query.x)):
        attention = torch.stack([F.cosine_similarity(r, key, dim=0) for key in keys]).softmax(0)
        w1, b1, w2, b2 = (sum(a * fast[k] for a, fast in zip(attention, memory, strict=True)) for k in range(4))
        fast_hidden = w1 @ r + b1
        assert fast_hidden.min() < 0 < fast_hidden.max()  # a ReLU makes a difference
        h = F.relu(hidden(r)) + F.relu(fast_hidden)
        logits.append(output(h) + w2 @ h + b2)
    torch.testing.assert_close(out.preds[0], torch.stack(logits), rtol=1e-9, atol=1e-11)
    found = torch.autograd.grad(out.loss[0], list(module.parameters()), allow_unused=True)
    expected = torch.autograd.grad(F.cross_entropy(torch.stack(logits), query.y), list(module.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    assert min(gradient.abs().max() for gradient in expected) > 1e-6


def test_without_fast_weights_the_slow_network_is_left(module: MetaNet, episodes: Episode) -> None:
    for network in (module.d.output, module.m.layers[-1]):
        torch.nn.init.zeros_(network.weight)
        torch.nn.init.zeros_(network.bias)
    query = first(episodes.query)
    out = module.query_loss(module.adapt(first(episodes.support)), query)
    torch.testing.assert_close(out.preds, module.logits(module.represent(module.backbone(query.x))))


def test_keys_may_point_in_opposite_directions(module: MetaNet, episodes: Episode) -> None:
    """Centred representations sum to zero, so each has another at more than a right angle. None would after a ReLU, and
    then one example of five could not get more than e / (e + 4) of the attention.
    """
    support, slow = first(episodes.support), module.representation
    for parameter in module.d.output.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        slow.bias.copy_(-slow.weight @ module.backbone(support.x).mean(0))
    keys = module.adapt(support).head.keys
    cosines = F.cosine_similarity(keys[:, None], keys, dim=-1)
    assert (cosines.amin(1) < 0).all()
