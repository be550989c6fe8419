import numpy as np
import torch

from lightning_meta.metrics import EpisodicAccuracy, EpisodicMSE


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
