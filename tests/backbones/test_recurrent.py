"""Recurrent cells in plain operations against torch's fused ones."""

import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from lightning_meta.backbones.recurrent import GRUCell, LSTMCell


def test_a_step_equals_that_of_torch_in_value_and_gradient() -> None:
    cell, fused = LSTMCell(3, 4).double(), nn.LSTMCell(3, 4).double()
    fused.load_state_dict(cell.state_dict())
    x, h, c = (torch.randn(5, size, dtype=torch.float64) for size in (3, 4, 4))
    steps = [step(x, (h, c)) for step in (cell, fused)]
    torch.testing.assert_close(*steps, rtol=1e-12, atol=1e-12)
    gradients = []
    for step, (hidden, memory) in zip((cell, fused), steps, strict=True):
        (hidden.square().sum() + memory.sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in step.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_initial_values_are_spread_as_torch_s() -> None:
    cell, fused = LSTMCell(30, 100), nn.LSTMCell(30, 100)
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(cell.get_parameter(name).abs().max(), parameter.abs().max(), rtol=0.05, atol=0)
        torch.testing.assert_close(cell.get_parameter(name).std(), parameter.std(), rtol=0.1, atol=0)


def test_a_sequence_equals_torch_s_lstm_under_vmap() -> None:
    cell, fused = LSTMCell(3, 4).double(), nn.LSTM(3, 4).double()
    fused.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x_LTBI = torch.randn(6, 2, 5, 3, dtype=torch.float64)
    expected = torch.stack([fused(x_LBI)[0] for x_LBI in x_LTBI.unbind(1)], 1)
    torch.testing.assert_close(vmap(cell.unroll, 1, 1)(x_LTBI), expected, rtol=1e-12, atol=1e-12)


def test_second_derivatives_equal_finite_differences() -> None:
    cell = LSTMCell(2, 2).double()
    x, params = torch.randn(3, 2, dtype=torch.float64), dict(cell.named_parameters())

    def output(bias: torch.Tensor) -> torch.Tensor:
        state = cell.zero_state(x)
        for _ in range(2):
            state = functional_call(cell, params | {"bias_hh": bias}, (x, state))
        return state[0].square().sum()

    bias, step = params["bias_hh"].detach(), 1e-5
    rows = [
        (grad(output)(bias + step * e) - grad(output)(bias - step * e)) / (2 * step)
        for e in torch.eye(8, dtype=torch.float64)
    ]
    torch.testing.assert_close(jacrev(grad(output))(bias), torch.stack(rows), rtol=1e-6, atol=1e-9)


def test_a_gru_is_that_of_torch_and_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    cell, fused = GRUCell(3, 4).double(), nn.GRUCell(3, 4).double()
    fused.load_state_dict({
        "weight_ih": cell.inputs.weight, "bias_ih": cell.inputs.bias,
        "weight_hh": cell.recurrent.weight, "bias_hh": cell.recurrent.bias,
    })  # fmt: skip
    x, state = torch.randn(5, 3).double(), torch.randn(5, 4).double().requires_grad_()
    torch.testing.assert_close(cell(x, state), fused(x, state))
    assert not cell.zero_state(x).any() and cell.zero_state(x).shape == (5, 4)
    torch.autograd.gradgradcheck(lambda h: cell(x, h), (state,))
    rows = torch.randn(3, 5, 3).double()
    step_by_step = [h := fused(rows[0])]
    step_by_step += [h := fused(row, h) for row in rows[1:]]
    torch.testing.assert_close(cell.unroll(rows), torch.stack(step_by_step))


def test_a_bias_makes_the_first_memory_longer() -> None:
    """Without weights, a step leaves sigmoid(keep) of the state; the gates that keep are those of the fused cell."""
    cell = GRUCell(3, 4)
    for map_ in (cell.inputs, cell.recurrent):
        nn.init.zeros_(map_.weight)
        nn.init.zeros_(map_.bias)
    torch.manual_seed(0)
    plain = GRUCell(3, 4).inputs.bias
    torch.manual_seed(0)
    added = GRUCell(3, 4, keep=2.0).inputs.bias - plain
    with torch.no_grad():
        cell.inputs.bias += added
    state = torch.rand(2, 4)
    torch.testing.assert_close(cell(torch.rand(2, 3), state), torch.tensor(2.0).sigmoid() * state)
