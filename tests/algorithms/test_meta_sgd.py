"""Meta-SGD learns a rate for each element of each weight."""

import pytest
import torch

from lightning_meta.algorithms import MAML, MetaSGD
from lightning_meta.core import Episode
from tests.conftest import Make, autograd_meta_gradient, conv4, meta_gradient, smooth

CASES: dict[str, Make] = {"meta-sgd": lambda: MetaSGD(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
LR, STEPS = 0.1, 2


def meta_sgd(**overrides) -> MetaSGD:
    torch.manual_seed(0)
    return MetaSGD(conv4(), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS) | overrides)).double()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_equal_rates_make_it_maml(mode: str, episodes: Episode) -> None:
    """To the last bit: the same loss, predictions and meta-gradient of the initialisation."""
    module, maml = (
        meta_sgd(task_mode=mode),
        MAML(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS, task_mode=mode).double(),
    )
    maml.load_state_dict(
        {name: value for name, value in module.state_dict().items() if not name.startswith("inner_optimizer.")}
    )
    for rate in module.inner_optimizer.rates.values():
        torch.nn.init.constant_(rate, LR)  # 0.1 in float64; the module was made in float32
    torch.testing.assert_close(module.play(episodes), maml.play(episodes), rtol=0, atol=0)
    gradient = meta_gradient(module, episodes)
    for name, expected in meta_gradient(maml, episodes).items():
        torch.testing.assert_close(gradient[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_meta_gradient_equals_plain_autograd_with_a_rate_for_each_element(first_order: bool, episodes: Episode) -> None:
    """The rates' own gradients too."""
    module = meta_sgd(first_order=first_order)
    for rate in module.inner_optimizer.rates.values():
        torch.nn.init.uniform_(rate, 0.005, 0.1)
    rates = {name.replace("/", "."): rate for name, rate in module.inner_optimizer.rates.items()}
    expected = autograd_meta_gradient(module, episodes, STEPS, lambda name, step: rates[name], not first_order)
    gradient = meta_gradient(module, episodes)
    assert set(gradient) == set(dict(module.named_parameters()))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)


def test_gradient_of_a_rate_equals_finite_differences(episodes: Episode) -> None:
    module = meta_sgd()
    smooth(module)
    rate = module.inner_optimizer.rates["0/blocks/1/0/weight"]
    gradient = meta_gradient(module, episodes)["inner_optimizer.rates.0/blocks/1/0/weight"]
    ends = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            rate[0, 1, 1, 2] += h
        ends.append(module.play(episodes).loss.mean())
        with torch.no_grad():
            rate[0, 1, 1, 2] -= h
    torch.testing.assert_close(gradient[0, 1, 1, 2], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-10)


def test_there_are_as_many_rates_as_weights() -> None:
    module = meta_sgd()
    sizes = {name.replace("/", "."): rate.shape for name, rate in module.inner_optimizer.rates.items()}
    assert sizes == {name: p.shape for name, p in module.learner.named_parameters()}
