"""Ridge regression on one task, against scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from lightning_meta.algorithms import RidgePerTask
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from tests.conftest import Make

REGRESSORS: dict[str, Make] = {"ridge_per_task": lambda: RidgePerTask(MLP(hidden=(8,)))}


def task(rows: int) -> Batch:
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    return Batch(x + 2, y - 3)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_predictions_are_those_of_scikit_learn(penalty: float) -> None:
    module, support, query = RidgePerTask(MLP(4, ()), penalty).double(), task(7), task(5)
    found = module.query_loss(module.adapt(support), query)
    truth = Ridge(alpha=7 * penalty).fit(support.x.numpy(), support.y.numpy()).predict(query.x.numpy())
    np.testing.assert_allclose(found.preds.detach().numpy(), truth, rtol=1e-6)
    assert found.loss.item() == pytest.approx(np.square(truth - query.y.numpy()).mean(), rel=1e-6)


def test_an_infinite_penalty_predicts_the_mean_of_the_support_set_and_learns_nothing() -> None:
    module, support, query = RidgePerTask(MLP(4, ()), math.inf).double(), task(7), task(5)
    preds = module.query_loss(module.adapt(support), query).preds
    torch.testing.assert_close(preds, support.y.mean(0).expand_as(query.y))
    assert not list(module.parameters())
    with pytest.raises(ConfigError, match=r"penalty=0 must be positive; \.inf predicts the mean"):
        RidgePerTask(MLP(4, ()), 0)
