import math
from math import sqrt

import numpy as np
import pytest
import torch

from lightning_meta.core import mean_and_ci95_over
from lightning_meta.core.statistics import mean_and_t95, t95
from lightning_meta.metrics import EpisodicAccuracy, EpisodicMSE, metric_of


def test_mean_and_ci95_equal_numpys() -> None:
    values = np.random.default_rng(0).uniform(size=1000)
    metric = EpisodicAccuracy()
    for part in np.array_split(values, 7):
        metric.update(torch.from_numpy(part))
    mean, ci95 = metric.compute()
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-12)
    np.testing.assert_allclose(ci95, 1.96 * values.std(ddof=1) / np.sqrt(1000), rtol=1e-9)


def test_one_episode_has_no_interval() -> None:
    metric = EpisodicAccuracy()
    metric.update(torch.tensor([0.4]))
    mean, ci95 = metric.compute()
    assert torch.isclose(mean, torch.tensor(0.4, dtype=torch.float64))
    assert ci95.isnan()


def test_per_episode_values() -> None:
    logits = torch.tensor([[[2.0, 1.0], [0.0, 3.0]], [[0.0, 1.0], [0.0, 3.0]]])
    labels = torch.tensor([[0, 1], [0, 1]])
    assert EpisodicAccuracy.per_episode(logits, labels).tolist() == [1.0, 0.5]
    assert EpisodicMSE.per_episode(torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 2, 1)).tolist() == [5.0]


def test_values_are_written_in_the_unit_of_their_metric() -> None:
    assert EpisodicAccuracy.text(0.89756, 0.00581) == "89.76 ± 0.58 %"
    assert EpisodicAccuracy.number(0.89756) == "89.76" and EpisodicAccuracy.label("gain") == "gain (%)"
    assert EpisodicMSE.text(0.00184, 0.00012) == "0.0018 ± 0.0001"
    assert EpisodicMSE.text(3.58e-5, 4.56e-6) == "0.000036 ± 0.000005"
    assert EpisodicMSE.text(0.0, math.nan) == "0.0000"  # of one episode
    assert metric_of("acc") is EpisodicAccuracy and metric_of("mse") is EpisodicMSE
    assert metric_of("total_return").text(35.1234, 0.5) == metric_of("return_0").text(35.1234, 0.5) == "35.12 ± 0.50"
    assert metric_of("of somebody else").text(2.0) == "2.0000" and metric_of("of somebody else").label("x") == "x"


def test_mean_and_interval_over_the_first_axis() -> None:
    values = torch.rand(9, 3, dtype=torch.float64)
    mean, ci95 = mean_and_ci95_over(values)
    torch.testing.assert_close(mean, values.mean(0))
    torch.testing.assert_close(ci95, 1.96 * values.std(0) / 3)


# Abramowitz, Stegun (1964), table 26.10, column Q = 0.975.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_quantiles_of_t_are_the_published_ones(degrees: int, quantile: float) -> None:
    assert t95(degrees) == pytest.approx(quantile, abs=5.1e-4)


def test_quantiles_of_t_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    assert [t95(degrees) for degrees in range(1, 60)] == pytest.approx(stats.t.ppf(0.975, range(1, 60)), rel=1e-10)


def test_the_interval_over_a_few_values() -> None:
    values = torch.tensor([0.90, 0.92, 0.97])
    mean, half = mean_and_t95(values)
    assert mean == pytest.approx(0.93)
    assert half == pytest.approx(4.302653 * np.std([0.90, 0.92, 0.97], ddof=1) / sqrt(3), rel=1e-6)
    assert np.isnan(mean_and_t95(values[:1])[1])
