"""The LSTM learner of Hochreiter against torch's own LSTM, and the fits that its error is compared with."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta.algorithms import LSTMLearner
from lightning_meta.callbacks.sequence_error import least_squares
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import Quadratics


@pytest.fixture
def tasks() -> Episode:
    data = Quadratics(k_shot=12, n_query=3)
    data.setup("test")
    support, query = data.dataset("test").__getitems__(range(40))
    return Episode(Batch(*(leaf.double() for leaf in support)), Batch(*(leaf.double() for leaf in query)))


def test_stream_and_query_equal_an_lstm_over_the_delayed_targets(tasks: Episode) -> None:
    module = LSTMLearner(hidden=9).double()
    lstm = nn.LSTM(3, 9, batch_first=True).double()
    lstm.load_state_dict({f"{name}_l0": value for name, value in module.cell.state_dict().items()})
    (sx, sy), (qx, qy) = tasks
    out = module.play(tasks)
    for i in range(3):
        x = torch.cat([sx, qx[:, i : i + 1]], dim=1)
        delayed = torch.cat([torch.zeros_like(sy[:, :1]), sy], dim=1)
        preds = module.output(lstm(torch.cat([x, delayed], dim=2))[0])
        torch.testing.assert_close(out.preds[:, i], preds[:, -1], rtol=1e-10, atol=1e-12)
    errors = (preds[:, :-1] - sy).square()[..., 0]
    for n in (1, 2, 5, 10):
        torch.testing.assert_close(out.logs[f"mse_{n}"], errors[:, n - 1])
    everything = torch.cat([errors, (out.preds - qy).square()[..., 0]], dim=1)
    torch.testing.assert_close(out.loss, everything.mean(1))


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
