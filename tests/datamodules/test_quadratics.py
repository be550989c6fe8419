"""Random quadratics are what their formula says."""

import numpy as np
import pytest
import torch

from lightning_meta.datamodules import Quadratics
from lightning_meta.errors import ConfigError

TASKS = 300


def test_values_are_quadratics_with_uniform_coefficients() -> None:
    data = Quadratics(k_shot=9, n_query=4)
    data.setup("fit")
    tasks = data.dataset("train").__getitems__(range(TASKS))
    assert tasks.support.x.shape == (TASKS, 9, 2)
    assert tasks.query.y.shape == (TASKS, 4, 1)
    coefficients = []
    for t in range(TASKS):
        x, y = (torch.cat([a[t], b[t]]).double().numpy() for a, b in zip(*tasks, strict=True))
        assert np.abs(x).max() <= 1
        x1, x2 = x.T
        terms = np.stack([x1 * x1, x2 * x2, x1 * x2, x1, x2, np.ones_like(x1)], axis=1)
        found, *_ = np.linalg.lstsq(terms, 12 * y[:, 0] - 6, rcond=None)
        np.testing.assert_allclose(terms @ found, 12 * y[:, 0] - 6, atol=1e-5)
        coefficients.append(found)
    drawn = np.array(coefficients)
    assert np.abs(drawn).max() < 1.001
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(drawn.std(0), 3**-0.5, rtol=0.15)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(6), atol=0.25)


def test_splits_differ_and_episodes_repeat() -> None:
    data = Quadratics()
    data.setup("fit")
    train, val = (data.dataset(split)[3] for split in ("train", "val"))
    assert not torch.equal(train.support.x, val.support.x)
    torch.testing.assert_close(data.dataset("train").__getitems__([1, 3]).query.y[1], train.query.y, rtol=0, atol=0)


def test_more_than_one_way_is_refused() -> None:
    data = Quadratics(n_way=2)
    with pytest.raises(ConfigError, match=r"n_way must be 1, not 2"):
        data.setup("fit")
