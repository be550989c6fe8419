"""The LSTM learner of Hochreiter against a cell that takes step after step, and the fits it is compared with."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import LSTMLearner
from lightning_meta.backbones.recurrent import LSTMCell, LSTMState
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import Quadratics
from lightning_meta.reports.sequence_error import least_squares
from tests.conftest import Make

REGRESSORS: dict[str, Make] = {"hochreiter": lambda: LSTMLearner(in_features=1, hidden=16)}


@pytest.fixture
def tasks() -> Episode:
    data = Quadratics(k_shot=12, n_query=3)
    data.setup("test")
    support, query = data.dataset("test").__getitems__(range(40))
    return Episode(Batch(*(leaf.double() for leaf in support)), Batch(*(leaf.double() for leaf in query)))


def by_cell(module: LSTMLearner, tasks: Episode) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions `(T, S, 1)` and `(T, Q, 1)`, one step after another, by a cell in plain operations."""
    cell = LSTMCell(3, module.lstm.hidden_size)
    weights = {name.removesuffix("_l0"): parameter for name, parameter in module.lstm.named_parameters()}

    def step(x: torch.Tensor, target: torch.Tensor, state: LSTMState) -> LSTMState:
        return functional_call(cell, weights, (torch.cat([x, target], -1), state))

    (sx, sy), (qx, _) = tasks
    state, target, preds = cell.zero_state(sx[:, 0]), torch.zeros_like(sy[:, 0]), []
    for x, y in zip(sx.unbind(1), sy.unbind(1), strict=True):
        state, target = step(x, target, state), y
        preds.append(module.output(state[0]))
    queries = [module.output(step(x, target, state)[0]) for x in qx.unbind(1)]
    return torch.stack(preds, 1), torch.stack(queries, 1)


def test_stream_and_query_equal_single_steps_of_a_cell_in_value_and_gradient(tasks: Episode) -> None:
    module = LSTMLearner(hidden=9).double()
    (_, sy), (_, qy) = tasks
    out, (stream, queries) = module.play(tasks), by_cell(module, tasks)
    torch.testing.assert_close(out.preds, queries, rtol=1e-10, atol=1e-12)
    errors = (stream - sy).square()[..., 0]
    for n in (1, 2, 5, 10):
        torch.testing.assert_close(out.logs[f"mse_{n}"], errors[:, n - 1], rtol=1e-10, atol=1e-12)
    everything = torch.cat([errors, (queries - qy).square()[..., 0]], dim=1)
    torch.testing.assert_close(out.loss, everything.mean(1), rtol=1e-10, atol=1e-12)
    gradients = []
    for loss in (out.loss, everything.mean(1)):
        module.zero_grad()
        loss.mean().backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)
    assert min(gradient.abs().max() for gradient in gradients[0].values()) > 1e-5


def test_one_task_is_played_without_a_task_axis(tasks: Episode) -> None:
    module = LSTMLearner(hidden=9).double().eval()
    task = tree_map(lambda leaf: leaf[3], tasks)
    adapted = module.adapt(task.support)
    torch.testing.assert_close(module.predict(adapted, task.query.x), module.play(tasks).preds[3].detach())
    assert adapted.target.shape == (1, 1) and adapted.state[0].shape == (1, 9)


def test_least_squares_fits_equal_numpys_and_are_exact_from_six_points_on(tasks: Episode) -> None:
    support = tasks.support
    preds = least_squares(support)
    for n in (1, 3, 6, 9):
        x1, x2 = support.x[0].numpy().T
        terms = np.stack([x1 * x1, x2 * x2, x1 * x2, x1, x2, np.ones_like(x1)], axis=1)
        coefficients = np.linalg.lstsq(terms[:n], support.y[0, :n, 0].numpy(), rcond=None)[0]
        assert preds[0, n, 0].item() == pytest.approx(terms[n] @ coefficients, rel=1e-6)
    assert (preds - support.y)[:, 8:].abs().max() < 1e-3  # data are of single precision
    assert (preds - support.y)[:, 3].square().mean() > 1e-3
