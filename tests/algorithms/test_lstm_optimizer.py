"""The LSTM optimizer against the paper's formulas, plain loops and finite differences, in float64."""

from math import exp
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import LSTMOptimizer
from lightning_meta.algorithms.optimizers.lstm_optimizer import CoordinatewiseLSTM
from lightning_meta.core import SGD, Batch, Params, Progress
from lightning_meta.datamodules import QuadraticOptimizees
from lightning_meta.datamodules.optimizees.optimizees import Segment
from lightning_meta.errors import ConfigError

STEPS = 4
DATA = QuadraticOptimizees(dimension=3, start=1.0, unroll_steps=2 * STEPS, truncation=STEPS, meta_batch_size=3)


def make(**settings: Any) -> LSTMOptimizer:
    """A rule that moves, with small hidden layers."""
    torch.manual_seed(0)
    module = LSTMOptimizer(**({"hidden": 5} | settings)).double()
    for network in module.rule.networks:
        nn.init.normal_(network.output.weight)
    module.loss_of = DATA.loss
    return module


def segment(part: int = 0) -> Segment:
    tasks = DATA.dataset("train").__getitems__(DATA.train_ids(part, 0, 3))
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks)


def test_with_the_network_replaced_by_a_rate_it_is_gradient_descent() -> None:
    module = make()

    class Rate(nn.Module):
        def zero_state(self, gradient: Tensor) -> Tensor:
            return gradient

        def forward(self, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return -0.05 * gradient, state

    module.rule.networks[0] = Rate()
    found = module.optimize(segment(), module.rule)
    torch.testing.assert_close(found, module.optimize(segment(), SGD(0.05)), rtol=1e-12, atol=0)
    assert (found[:, -1] < 0.8 * found[:, 0]).all()


def test_an_untrained_rule_stands_still() -> None:
    module = LSTMOptimizer().double()
    module.loss_of = DATA.loss
    losses = module.optimize(segment(), module.rule)
    assert torch.equal(losses, losses[:, :1].expand_as(losses))


def written_out(module: LSTMOptimizer, tasks: Segment, constant_gradients: bool) -> Tensor:
    """The meta-loss of a first segment by plain autograd and torch's own LSTM cells."""
    network = module.rule.networks[0]
    cells = []
    for cell in network.cells:
        cells.append(nn.LSTMCell(cell.weight_ih.shape[1], 5).double())
        for name, value in cell.named_parameters():
            del cells[-1]._parameters[name]
            setattr(cells[-1], name, value)
    losses = []
    for t in range(len(tasks.start)):
        w, y = tasks.batches.x[t, 0], tasks.batches.y[t, 0]
        theta = tasks.theta["theta"][t].clone().requires_grad_()
        states = [(torch.zeros(3, 5).double(),) * 2 for _ in cells]
        for _ in range(STEPS):
            (g,) = torch.autograd.grad((w @ theta - y).square().sum(), theta, create_graph=True)
            g = g.detach() if constant_gradients else g
            x = torch.stack([g.abs().clamp_min(exp(-10)).log() / 10, (exp(10) * g).clamp(-1, 1)], 1)
            for k, cell in enumerate(cells):
                states[k] = cell(x, states[k])
                x = states[k][0]
            theta = theta + 0.1 * network.output(x)[:, 0]
            losses.append((w @ theta - y).square().sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("second_order", [False, True])
def test_loss_and_meta_gradient_are_those_of_a_written_out_loop(second_order: bool, mode: Any) -> None:
    module = make(second_order=second_order, task_mode=mode)
    values, _ = module.measure(segment())
    expected = written_out(module, segment(), constant_gradients=not second_order)
    torch.testing.assert_close(values["loss"].mean(), expected, rtol=1e-10, atol=0)
    found, wanted = (torch.autograd.grad(loss, list(module.parameters())) for loss in (values["loss"].mean(), expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
    assert max(g.abs().max() for g in found) > 1e-3


@pytest.mark.parametrize("second_order", [True, False])
def test_only_the_second_order_meta_gradient_equals_finite_differences(second_order: bool) -> None:
    """Along a random direction, of a rule that answers strongly to the size of gradients."""
    module = make(second_order=second_order, p=1.0, scale=1.0)
    for parameter in module.parameters():
        parameter.data *= 2
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in module.parameters()]

    def loss() -> Tensor:
        return module.measure(segment())[0]["loss"].mean()

    gradients = torch.autograd.grad(loss(), list(module.parameters()))
    found = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    ends = []
    for sign in (1, -2):  # there and back to the other side
        for parameter, direction in zip(module.parameters(), directions, strict=True):
            parameter.data += sign * 1e-6 * direction
        ends.append(loss().detach())
    difference = (ends[0] - ends[1]) / 2e-6
    assert torch.isclose(found, difference, rtol=1e-6, atol=0) == second_order
    if not second_order:
        assert not torch.isclose(found, difference, rtol=1e-2, atol=0)


@pytest.fixture
def params() -> Params:
    generator = torch.Generator().manual_seed(1)
    shapes = {"conv.weight": (2, 3), "conv.bias": (2,), "fc.weight": (4,)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def steps(rule: CoordinatewiseLSTM, params: Params, gradients: list[Params]) -> Params:
    state, start = rule.init(params), params
    for gradient in gradients:
        params, state = rule.update(gradient, state, params, torch.zeros(()))
    return {name: params[name] - start[name] for name in params}


def gradients_like(params: Params) -> list[Params]:
    generator = torch.Generator().manual_seed(2)
    return [
        {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in params.items()}
        for _ in range(3)
    ]


def test_permuted_coordinates_have_permuted_updates(params: Params) -> None:
    """Within a tensor, and from one tensor to another of the same group."""
    rule, gradients = make().rule, gradients_like(params)

    def permuted(tensors: Params) -> Params:
        flat = torch.cat([value.flatten() for value in tensors.values()])[order].split([6, 2, 4])
        return {name: part.view_as(params[name]) for name, part in zip(params, flat, strict=True)}

    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    expected = permuted(steps(rule, params, gradients))
    found = steps(rule, permuted(params), [permuted(gradient) for gradient in gradients])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert expected["fc.weight"].std() > 1e-3, "coordinates move differently"


def test_each_group_has_a_network_of_its_own(params: Params) -> None:
    """The first pattern that matches counts; the state of one group does not reach the other."""
    rule, gradients = make(groups=["conv.*", "*"]).rule, gradients_like(params)
    assert [rule.group_of(name) for name in params] == [0, 0, 1]
    before = steps(rule, params, gradients)
    nn.init.zeros_(rule.networks[0].output.weight)
    nn.init.constant_(rule.networks[0].output.bias, 2.0)
    after = steps(rule, params, gradients)
    assert torch.equal(after["fc.weight"], before["fc.weight"])
    for name in ("conv.weight", "conv.bias"):
        torch.testing.assert_close(after[name], torch.full_like(after[name], 3 * 0.1 * 2))


def test_groups_that_do_not_fit_the_parameters_are_refused(params: Params) -> None:
    with pytest.raises(ConfigError, match=r"no pattern for the parameter fc\.weight"):
        make(groups=["conv.*"]).rule.init(params)
    with pytest.raises(ConfigError, match=r"'lstm\.\*' has no parameter among"):
        make(groups=["lstm.*", "*"]).rule.init(params)
    with pytest.raises(ConfigError, match="hidden=0"):
        LSTMOptimizer(hidden=0)


def test_vmap_equals_loop_in_a_later_segment_and_in_evaluation() -> None:
    results = []
    for mode in ("vmap", "loop"):
        module = make(task_mode=mode)
        module.measure(segment(0))
        later = module.measure(segment(1))[1]["losses"]
        results.append((later, module.carried, module.optimize(segment(), module.rule)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_segments_make_up_the_whole() -> None:
    """Where one ends the next begins, with the state of the LSTM; evaluation plays all of them at once."""
    module = make()
    first, second = (module.measure(segment(part))[1]["losses"] for part in (0, 1))
    batches = tree_map(lambda a, b: torch.cat([a[:, :-1], b], 1), segment(0).batches, segment(1).batches)
    whole = module.optimize(segment(0)._replace(batches=Batch(*batches)), module.rule)
    torch.testing.assert_close(torch.cat([first[:, :-1], second], 1), whole, rtol=1e-12, atol=1e-12)
    assert isinstance(module.carried, Progress)
    assert not any(leaf.requires_grad for leaf in module.carried.params.values()), "carried as constants"
    module.measure(segment(0))
    assert torch.equal(module.measure(segment(1))[1]["losses"], second), "the first segment starts anew"


def test_it_learns_to_minimise_quadratics() -> None:
    """From standing still to half of the loss that it starts with, on functions it has not seen."""
    torch.manual_seed(0)
    module = LSTMOptimizer(hidden=8)
    module.loss_of = DATA.loss
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for batch in range(80):
        values, _ = module.measure(DATA.dataset("train").__getitems__(DATA.train_ids(batch, 0, 3)))
        optimizer.zero_grad()
        values["loss"].mean().backward()
        optimizer.step()
    losses = module.optimize(DATA.dataset("test").__getitems__(range(20)), module.rule).mean(0)
    assert losses[-1] < 0.5 * losses[0]
