"""ENAS: rewards of single networks with the shared weights, and the gradient of the policy from them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import ENAS
from lightning_meta.core.architectures import dice_of
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import cell, held_out, trial_of
from tests.backbones.test_cell import plain

BILEVEL = {"enas": lambda **kw: ENAS(cell(), 4, samples=5, **kw)}


def enas() -> ENAS:
    torch.manual_seed(0)
    module = ENAS(cell(), 4, samples=5).double().train()
    with torch.no_grad():
        module.logits_EO.normal_()
    return module


def test_the_policy_learns_from_networks_of_single_cells() -> None:
    """Each sampled cell as a network of its own, with its part of the weights after the inner step."""
    module = enas()
    trial = trial_of(held_out(support_per_class=3, held_out_per_class=4), [0])
    module.measure(trial)[0]["loss"].sum().backward()
    first, *judged = module.cell.cells_KE[module.sampled()]
    start = {name: value[0] for name, value in module.begin(trial).params.items()}

    def network(weights: dict[str, torch.Tensor], operations: torch.Tensor) -> nn.Module:
        module.network.load_state_dict(weights, strict=False)
        return nn.Sequential(plain(module.cell, module.cell.named(operations).split("|")), module.network.head)

    trained = network(start, first).requires_grad_(True)
    loss = F.cross_entropy(trained(trial.support.x[0, 0]), trial.support.y[0, 0])
    slopes = dict(zip([n for n, _ in trained.named_parameters()],
                      torch.autograd.grad(loss, [*trained.parameters()], allow_unused=True), strict=True))  # fmt: skip
    stepped = dict(start)
    for name, slope in slopes.items():
        part, _, rest = name.partition(".")
        ours = f"head.{rest}" if part == "1" else f"backbone.{rest}"
        if rest.startswith("choices"):
            _, edge, _, *inside = rest.split(".")
            ours = ".".join(["backbone.choices", edge, str(int(first[int(edge)])), *inside])
        if slope is not None:
            stepped[ours] = start[ours] - 0.1 * slope
    rewards = [
        (network(stepped, one)(trial.query.x[0]).argmax(1) == trial.query.y[0]).double().mean() for one in judged
    ]
    assert len({*map(float, rewards)}) > 1
    theta = module.logits_EO.detach().clone().requires_grad_()
    log_p_of_all = torch.stack([theta.log_softmax(1)[range(3), one].sum() for one in module.cell.cells_KE])
    log_p = [theta.log_softmax(1)[range(3), one].sum() - log_p_of_all.logsumexp(0) for one in judged]
    surrogate = sum(
        -(reward - (sum(rewards) - reward) / 4) * value / 5 for reward, value in zip(rewards, log_p, strict=True)
    )
    (expected,) = torch.autograd.grad(surrogate, theta)
    torch.testing.assert_close(module.logits_EO.grad, expected, rtol=1e-9, atol=1e-12)


def test_an_inner_step_trains_the_weights_of_one_cell() -> None:
    module = enas()
    trial = trial_of(held_out(), [0])
    module.measure(trial)
    before = module.carried.params
    module.settle()
    moved = {
        name for name, value in module.carried.params.items() if not torch.equal(value, before[name])
    }  # fmt: skip
    chosen = module.cell.cells_KE[module.sampled()[0]]
    allowed = {f"backbone.choices.{edge}.{place}.linear.weight" for edge, place in enumerate(chosen.tolist())}
    assert moved <= allowed | {"backbone.stem.linear.weight", "head.weight", "head.bias"}
    assert "head.weight" in moved


def test_every_turn_has_samples_of_its_own() -> None:
    module = enas()
    data = held_out()
    sampled = []
    for segment in range(3):
        module.measure(trial_of(data, [segment]))
        sampled.append(module.sampled().tolist())
        torch.testing.assert_close(module.dice_N, dice_of(0, torch.tensor([segment]), 6)[0])
        module.settle()
    assert sampled[0] != sampled[1] != sampled[2] and module.turn == 3


def test_one_sample_has_no_baseline() -> None:
    with pytest.raises(ConfigError, match="samples=1 must be at least 2"):
        ENAS(cell(), 4, samples=1)
