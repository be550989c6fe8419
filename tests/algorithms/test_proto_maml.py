"""Proto-MAML (proto_maml) is a Prototypical Network before the first step, and plain gradient descent after it."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import ProtoMAML, ProtoNet
from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.modules.learned_rates import LearnedRates
from tests.conftest import Make, conv4, meta_gradient, random_episodes, smooth

CASES: dict[str, Make] = {"proto_maml": lambda: ProtoMAML(conv4(), inner_lr=0.02, inner_steps=2)}
VARIANTS: dict[str, Make] = {
    "proto_maml-first-order": lambda: ProtoMAML(conv4(), inner_lr=0.02, inner_steps=2, first_order=True),
    "proto_maml-learned-rates": lambda: ProtoMAML(
        conv4(), inner_lr=0.02, inner_steps=2, inner_optimizer=partial(LearnedRates, per="element")
    ),
}
LR, STEPS = 0.05, 3


def proto_maml(**overrides) -> ProtoMAML:
    torch.manual_seed(0)
    return ProtoMAML(smooth(conv4()), **(dict(inner_lr=LR, inner_steps=STEPS) | overrides)).double()


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_with_no_steps_it_is_a_prototypical_network(norm: str, episodes: Episode) -> None:
    """Logits differ by a number for each query: its squared length. Probabilities, losses, gradients do not differ."""
    module = ProtoMAML(conv4(norm), inner_steps=0).double()
    protonet = ProtoNet(module.backbone).double()
    ours, theirs = module.play(episodes), protonet.play(episodes)
    shift = (ours.preds - theirs.preds)[:, :, :3]
    torch.testing.assert_close(shift, shift[:, :, :1].expand_as(shift), rtol=1e-9, atol=1e-10)
    assert shift.min() > 0
    torch.testing.assert_close(ours.preds.softmax(-1), theirs.preds.softmax(-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-10, atol=1e-12)
    gradient = meta_gradient(protonet, episodes)
    for name, found in meta_gradient(module, episodes).items():
        torch.testing.assert_close(found, gradient[name.replace("learner.0.", "backbone.")], rtol=1e-8, atol=1e-12)


def by_autograd(module: ProtoMAML, tasks: Episode, create_graph: bool) -> tuple[list[Tensor], Tensor]:
    """Logits of each task and the mean loss: a loop over classes makes the head, torch.autograd the steps."""
    logits, (support, query) = [], tasks
    for t in range(3):
        # Copies: the head depends on the parameters, not on the copies that move, of which a step has the gradient.
        body = {name: p.clone() for name, p in module.backbone.named_parameters()}
        features = module.backbone(support.x[t])
        means = [features[support.y[t] == c].mean(0) for c in range(3)]
        head = [torch.stack([2 * mean for mean in means]), torch.stack([-mean @ mean for mean in means])]
        for _ in range(STEPS):
            scores = functional_call(module.backbone, body, (support.x[t],)) @ head[0].T + head[1]
            loss = F.cross_entropy(scores, support.y[t])
            grads = torch.autograd.grad(loss, [*body.values(), *head], create_graph=create_graph)
            head = [p - LR * g for p, g in zip(head, grads[-2:], strict=True)]
            body = {name: p - LR * g for (name, p), g in zip(body.items(), grads[:-2], strict=True)}
        logits.append(functional_call(module.backbone, body, (query.x[t],)) @ head[0].T + head[1])
    return logits, torch.stack([F.cross_entropy(*task) for task in zip(logits, query.y, strict=True)]).mean()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_logits_and_meta_gradient_equal_plain_autograd(mode: str, first_order: bool, episodes: Episode) -> None:
    """First order too lets the gradient through the prototypes: without it, only inner gradients are constants."""
    module = proto_maml(first_order=first_order, task_mode=mode)
    gradient, preds = meta_gradient(module, episodes), module.play(episodes).preds
    logits, loss = by_autograd(module, episodes, create_graph=not first_order)
    torch.testing.assert_close(preds[:, :, :3], torch.stack(logits), rtol=1e-9, atol=1e-10)
    assert (preds[:, :, 3:] == -torch.inf).all()
    expected = torch.autograd.grad(loss, list(module.parameters()))
    assert max(g.abs().max() for g in expected) > 1e-3
    names = [name for name, _ in module.named_parameters()]
    torch.testing.assert_close(gradient, dict(zip(names, expected, strict=True)), rtol=1e-8, atol=1e-12)


def test_plays_any_way_with_the_same_weights() -> None:
    module = proto_maml()
    for n_way in (2, 7):
        assert module.play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)
    module.check_task(EpisodeShape(n_way=20, k_shot=1, n_query=5), "train")


def test_equal_learned_rates_change_nothing(episodes: Episode) -> None:
    module = proto_maml()
    learned = proto_maml(inner_optimizer=partial(LearnedRates, per="element"))
    for rate in learned.inner_optimizer.rates.values():
        torch.nn.init.constant_(rate, LR)  # in float64; the module was made in float32
    torch.testing.assert_close(learned.play(episodes), module.play(episodes), rtol=1e-12, atol=1e-12)
