"""T-Nets (t_net): MAML with the identity, and preconditioned gradient descent with any other matrix."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, TNet
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, smooth

LR, STEPS = 0.1, 2
CASES: dict[str, Make] = {"t_net": lambda: TNet(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}


VARIANTS: dict[str, Make] = {"mt_net": lambda: TNet(conv4(), n_way=3, inner_lr=0.1, inner_steps=2, masks=True)}


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


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_masked_units_stay_and_the_others_move_as_ever(
    training: bool, episodes: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two steps, by plain autograd; in evaluation a unit moves by its probability."""
    generator = torch.Generator().manual_seed(3)
    uniform = {}
    monkeypatch.setattr(
        "torch.rand_like", lambda x: uniform.setdefault(len(uniform), torch.rand(x.shape, generator=generator).to(x))
    )
    module = t_net(masks=True).train(training)
    for odds in module.mask_odds.values():
        nn.init.normal_(odds)
    support = Batch(*(leaf[0] for leaf in episodes.support))
    found = module.adapt(support)
    masks = {}
    for place, (name, odds) in enumerate(module.mask_odds.items()):
        masks[name] = (uniform[place] > (-odds).sigmoid()).double() if training else odds.sigmoid()
    if training:
        assert {value for mask in masks.values() for value in mask.tolist()} == {0.0, 1.0}
    phi = {name: value.detach().requires_grad_() for name, value in module.theta().items()}
    for _ in range(STEPS):
        loss = F.cross_entropy(functional_call(module.learner, phi, (support.x,)), support.y)
        for (name, value), grad in zip([*phi.items()], torch.autograd.grad(loss, [*phi.values()]), strict=True):
            mask = masks.get(name.rpartition(".layer.")[0].replace(".", "/"))
            scaled = grad if mask is None else torch.einsum("c,c...->c...", mask.detach(), grad)
            phi[name] = (value - LR * scaled).detach().requires_grad_()
    torch.testing.assert_close(found, {name: phi[name].detach() for name in found}, rtol=1e-9, atol=1e-11)


def test_a_mask_is_drawn_with_its_odds_and_learned_through_its_relaxation() -> None:
    module = t_net(masks=True, mask_temperature=0.7)
    odds = torch.tensor([-2.0, 0.0, 1.5]).double().requires_grad_()
    draws = torch.stack([module.mask(odds).detach() for _ in range(4000)])
    assert set(draws.unique().round(decimals=12).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(0), odds.sigmoid().detach(), rtol=0, atol=0.03)
    torch.manual_seed(4)
    (found,) = torch.autograd.grad(module.mask(odds).sum(), odds)
    torch.manual_seed(4)
    noise = torch.rand_like(odds.detach()).logit()
    one = ((odds + noise) / 0.7).exp()  # against exp(0): the softmax of two
    (expected,) = torch.autograd.grad((one / (one + 1)).sum(), odds)
    torch.testing.assert_close(found, expected)


def test_the_odds_are_meta_learned_and_tasks_draw_their_own(episodes: Episode) -> None:
    module = t_net(masks=True)
    gradient = meta_gradient(module, episodes)
    assert all(gradient[f"mask_odds.{name}"].abs().max() > 1e-7 for name in module.mask_odds)
    module.task_mode = "vmap"
    same = Episode(*(Batch(x[:1].expand_as(x), y[:1].expand_as(y)) for x, y in episodes))
    losses = module.play(same).loss
    assert losses.unique().numel() > 1
    assert module.eval().play(same).loss.std() < 1e-12


def test_a_temperature_is_positive() -> None:
    with pytest.raises(ConfigError, match=r"mask_temperature=0 must be positive"):
        t_net(masks=True, mask_temperature=0)
