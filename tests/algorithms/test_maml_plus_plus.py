"""MAML++ is MAML with its switches off, and each switch does what the paper says."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, MAMLPlusPlus
from lightning_meta.backbones import norm_protocol
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, autograd_meta_gradient, conv4, meta_gradient, put_in_force

CASES: dict[str, Make] = {"maml_plus_plus": lambda: MAMLPlusPlus(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
VARIANTS: dict[str, Make] = {
    "maml_plus_plus-first-order": lambda: MAMLPlusPlus(
        conv4(), n_way=3, inner_lr=0.1, inner_steps=2, first_order_until=10
    ),
}
LR, STEPS = 0.1, 3
OFF: dict[str, Any] = dict(multi_step_until=0, first_order_until=0, per_step_norm=False, learned_rates=False)


def plus_plus(outer_step: int = 0, **switches: Any) -> MAMLPlusPlus:
    """All switches are off but those given; as if so many outer steps had been taken."""
    torch.manual_seed(0)

    class AtStep(MAMLPlusPlus):
        global_step = outer_step

    return AtStep(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS, **(OFF | switches)).double()


def maml(**overrides: Any) -> MAML:
    torch.manual_seed(0)
    return MAML(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS, **overrides).double()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True])
def test_with_everything_off_it_is_maml_bit_for_bit(mode: str, first_order: bool, episodes: Episode) -> None:
    module, other = (make(first_order=first_order, task_mode=mode) for make in (plus_plus, maml))
    torch.testing.assert_close(module.play(episodes), other.play(episodes), rtol=0, atol=0)
    # A loop adds up the parts of the gradient in another order, as MAML does not keep the path of a task.
    rtol, atol = (0, 0) if mode == "vmap" else (1e-12, 1e-15)
    torch.testing.assert_close(meta_gradient(module, episodes), meta_gradient(other, episodes), rtol=rtol, atol=atol)
    module.eval(), other.eval()
    torch.testing.assert_close(module.play(episodes), other.play(episodes), rtol=0, atol=0)


def test_learned_rates_are_per_tensor_and_step(episodes: Episode) -> None:
    module = plus_plus(learned_rates=True)
    for rate in module.inner_optimizer.rates.values():
        assert rate.shape == (STEPS,)
        torch.nn.init.uniform_(rate, 0.01, 0.2)
    rates = {name.replace("/", "."): rate for name, rate in module.inner_optimizer.rates.items()}
    assert set(rates) == set(dict(module.learner.named_parameters()))
    expected = autograd_meta_gradient(module, episodes, STEPS, lambda name, step: rates[name][step])
    torch.testing.assert_close(meta_gradient(module, episodes), expected, rtol=1e-9, atol=1e-13)


def test_all_switches_together_equal_plain_autograd(episodes: Episode) -> None:
    """The paper's training written out: a step's rates, a slot's normalisation, a weight for each step's query loss."""
    module = plus_plus(outer_step=50, multi_step_until=100, per_step_norm=True, learned_rates=True)
    for parameter in [*module.inner_optimizer.parameters(), *module.norm.parameters()]:
        torch.nn.init.uniform_(parameter, 0.05, 0.15)
    rates = {name.replace("/", "."): rate for name, rate in module.inner_optimizer.rates.items()}
    norm = {name.replace("/", "."): values for name, values in module.norm.affine.items()}
    weights = [1 / 6, 1 / 6, 2 / 3]  # half of 1/3 each for the first two steps, the rest for the last

    def loss(phi: dict[str, Tensor], slot: int, batch: Batch, t: int) -> Tensor:
        params = phi | {name: values[slot] for name, values in norm.items()}
        return F.cross_entropy(functional_call(module.learner, params, batch.x[t]), batch.y[t])

    losses = []
    for t in range(len(episodes.support.x)):
        phi = {name: value for name, value in module.learner.named_parameters() if name not in norm}
        for step in range(STEPS):
            grads = torch.autograd.grad(loss(phi, step, episodes.support, t), list(phi.values()), create_graph=True)
            phi = {name: p - rates[name][step] * g for (name, p), g in zip(phi.items(), grads, strict=True)}
            losses.append(weights[step] * loss(phi, step + 1, episodes.query, t))
    expected = torch.stack(losses).sum() / len(episodes.support.x)
    torch.testing.assert_close(module.play(episodes).loss.mean(), expected, rtol=1e-10, atol=1e-12)
    gradient = meta_gradient(module, episodes)
    module.zero_grad()
    expected.backward()
    trained = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert all(g is not None for g in trained.values())
    torch.testing.assert_close(gradient, trained, rtol=1e-8, atol=1e-12)


def test_multi_step_weights_fade_to_the_last_step() -> None:
    def weights(outer_step: int) -> list[float]:
        return plus_plus(outer_step, multi_step_until=100).loss_weights()

    assert weights(0) == pytest.approx([1 / 3] * 3)
    assert weights(50) == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    assert weights(99) == pytest.approx([0.01, 0.01, 0.98])  # the floor, 0.03 / K
    assert weights(100) == [1.0]
    assert plus_plus(0, multi_step_until=100).eval().loss_weights() == [1.0]


def test_predictions_and_evaluation_are_those_of_the_last_step(episodes: Episode) -> None:
    module, other = plus_plus(multi_step_until=100), maml()
    torch.testing.assert_close(module.play(episodes).preds, other.play(episodes).preds, rtol=0, atol=0)
    assert not torch.allclose(module.play(episodes).loss, other.play(episodes).loss)
    assert torch.equal(module.play(episodes).logs["last_step_loss"], other.play(episodes).loss)
    assert torch.equal(module.eval().play(episodes).loss, other.eval().play(episodes).loss)


def test_derivative_order_changes_at_its_outer_step(episodes: Episode) -> None:
    for outer_step, first_order in ((9, True), (10, False)):
        gradient = meta_gradient(plus_plus(outer_step, first_order_until=10), episodes)
        torch.testing.assert_close(gradient, meta_gradient(maml(first_order=first_order), episodes), rtol=0, atol=0)


def test_per_step_normalisation_replaces_the_layers_own_and_is_not_adapted(episodes: Episode) -> None:
    module = plus_plus(per_step_norm=True)
    path = module.adapt(Batch(episodes.support.x[0], episodes.support.y[0]))
    for name, values in module.norm.affine.items():
        assert values.shape == (STEPS + 1, 6)
        assert torch.equal(path.phis[-1][name.replace("/", ".")], values[STEPS])
    assert not any(p.requires_grad for p in module.backbone.blocks[0][1].parameters())


def test_more_steps_in_evaluation_use_the_last_slot(episodes: Episode) -> None:
    module = plus_plus(per_step_norm=True, learned_rates=True, eval_inner_steps=STEPS + 4).eval()
    losses = [module.play(Episode(episodes.support, episodes.support)).loss.mean()]
    module.eval_inner_steps = 0
    losses.append(module.play(Episode(episodes.support, episodes.support)).loss.mean())
    assert losses[0] < losses[1]


def test_per_step_averages_are_of_the_support_sets_and_serve_in_evaluation(episodes: Episode) -> None:
    module = plus_plus(per_step_statistics=True)
    assert norm_protocol(module) == "per-step running"
    put_in_force(module, module.play(episodes))
    conv = module.backbone.blocks[0][0]
    seen = torch.stack([conv(x).mean(dim=(0, 2, 3)) for x in episodes.support.x]).mean(0)
    averages = dict(module.norm.named_buffers())["0/blocks/0/1/mean"]
    torch.testing.assert_close(averages[0], 0.1 * seen, rtol=1e-9, atol=1e-12)  # before the first step: theta
    assert not torch.allclose(averages[1], averages[0])
    for _ in range(60):  # until the averages have forgotten that they began with 0 and 1
        put_in_force(module, module.play(episodes))
    torch.testing.assert_close(averages[0], seen, rtol=1e-2, atol=1e-4)
    module.eval()
    first_query = Episode(episodes.support, Batch(episodes.query.x[:, :1], episodes.query.y[:, :1]))
    alone, together = module.play(first_query).preds[:, 0], module.play(episodes).preds[:, 0]
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("multi_step_until", [0, 5], ids=["last step", "every step"])
def test_evaluation_and_the_hooks_leave_the_averages_alone(multi_step_until: int, episodes: Episode) -> None:
    """In training they return the new ones; in evaluation there are none."""
    module = plus_plus(per_step_statistics=True, multi_step_until=multi_step_until)
    before = {name: values.clone() for name, values in module.named_buffers()}
    assert module.play(episodes).buffers.keys() == before.keys()
    assert not module.eval().play(episodes).buffers
    torch.testing.assert_close(dict(module.named_buffers()), before, rtol=0, atol=0)
