"""Learned rates and weight decays against torch's optimizers and finite differences."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.algorithms.optimizers.meta_lstm import GatedUpdate
from lightning_meta.core import SGD, Adam, Momentum, Params, RMSprop, unroll
from lightning_meta.errors import ConfigError
from lightning_meta.modules.learned_rates import LearnedRates

STEPS = 4
TORCH: dict[type, Callable[..., torch.optim.Optimizer]] = {
    SGD: torch.optim.SGD,
    Momentum: partial(torch.optim.SGD, momentum=0.9),
    RMSprop: torch.optim.RMSprop,
    Adam: torch.optim.Adam,
}
every_rule = pytest.mark.parametrize("rule", TORCH)


def loss(params: Params) -> Tensor:
    return params["a"].sin().sum() * params["b"].sum() + (params["a"] ** 4).sum()


def start() -> Params:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(n, generator=generator, dtype=torch.float64) for name, n in [("a", 4), ("b", 2)]}


def learned(rule: type, per: str = "tensor", weight_decay: float | None = None, **settings) -> LearnedRates:
    return LearnedRates(0.1, rule, per, weight_decay=weight_decay, **settings).build(start()).double()


def fill(table: nn.ParameterDict, low: float, high: float) -> None:
    for values in table.values():
        nn.init.uniform_(values, low, high)


@every_rule
@pytest.mark.parametrize("per", ["element", "tensor", "all"])
@pytest.mark.parametrize("steps", [None, 2])
def test_one_rate_and_no_decay_is_the_plain_optimizer(rule: type, per: str, steps: int | None) -> None:
    """To the last bit, with a weight decay of zero too."""
    plain = unroll(loss, start(), rule(0.1), STEPS, trajectory=True)
    for weight_decay in (None, 0.0):
        optimizer = learned(rule, per, weight_decay, steps=steps)
        for rate in optimizer.rates.values():
            nn.init.constant_(rate, 0.1)  # in float64; it was made in float32
        path = unroll(loss, start(), optimizer, STEPS, trajectory=True)
        torch.testing.assert_close(path, plain, rtol=0, atol=0)


@every_rule
def test_fixed_rates_and_decays_are_torchs_parameter_groups(rule: type) -> None:
    """Those of `torch.optim`, with a learning rate and a weight decay for each tensor."""
    optimizer = learned(rule, weight_decay=0.0)
    fill(optimizer.rates, 0.05, 0.2)
    fill(optimizer.decays, 0.1, 0.5)
    params = {name: value.clone().requires_grad_() for name, value in start().items()}
    groups = [
        {"params": [value], "lr": optimizer.rates[name].item(), "weight_decay": optimizer.decays[name].item()}
        for name, value in params.items()
    ]
    reference = TORCH[rule](groups)
    for found in unroll(loss, start(), optimizer, STEPS, trajectory=True)[1:]:
        reference.zero_grad()
        loss(params).backward()
        reference.step()
        torch.testing.assert_close(found, {n: p.detach() for n, p in params.items()}, rtol=1e-12, atol=1e-14)


class Path(nn.Module):
    """The loss at the end of the steps, as a function of the meta-parameters."""

    def __init__(self, optimizer: LearnedRates) -> None:
        super().__init__()
        self.optimizer = optimizer

    def forward(self) -> Tensor:
        return loss(unroll(loss, start(), self.optimizer, STEPS))


@every_rule
@pytest.mark.parametrize("per", ["element", "tensor", "all"])
@pytest.mark.parametrize("steps", [None, 2])
def test_meta_gradients_equal_finite_differences(rule: type, per: str, steps: int | None) -> None:
    """Of every rate and every weight decay."""
    path = Path(learned(rule, per, 0.0, steps=steps))
    fill(path.optimizer.rates, 0.05, 0.2)
    fill(path.optimizer.decays, 0.1, 0.5)
    names, values = zip(*path.named_parameters(), strict=True)
    assert len(names) == {"all": 2}.get(per, 4)
    assert torch.autograd.gradcheck(lambda *v: functional_call(path, dict(zip(names, v, strict=True)), ()), values)


def test_each_step_has_its_rates_and_later_ones_the_last() -> None:
    optimizer = learned(SGD, "element", weight_decay=0.0, steps=3)
    fill(optimizer.rates, 0.01, 0.2)
    fill(optimizer.decays, 0.1, 0.5)
    phi = start()
    for step, found in enumerate(unroll(loss, start(), optimizer, 5, trajectory=True)[1:]):
        grads, k = torch.func.grad(loss)(phi), min(step, 2)
        phi = {n: p - optimizer.rates[n][k] * (grads[n] + optimizer.decays[n][k] * p) for n, p in phi.items()}
        torch.testing.assert_close(found, phi, rtol=1e-12, atol=1e-14)


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ConfigError, match="GatedUpdate, not a dataclass with a field `lr`; take SGD or Adam"):
        LearnedRates(0.1, partial(GatedUpdate, hidden=4))
    with pytest.raises(ConfigError, match="steps=0 must be at least 1"):
        LearnedRates(0.1, steps=0)
    with pytest.raises(ConfigError, match=r"call build\(params\)"):
        unroll(loss, start(), LearnedRates(0.1), 1)
