"""The bounds that a test of neural processes logs, in a real, tiny test of the Trainer, and the fits that it shows."""

from pathlib import Path

import pytest
import torch
from torch.distributions import Normal

from lightning_meta.algorithms import ConditionalNeuralProcess
from lightning_meta.core import Batch
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import GaussianProcess
from lightning_meta.reports import ProcessFits
from lightning_meta.reports.process_fits import process_fits
from tests.reports.conftest import run_test

EPISODES = 7


def test_bounds_are_scores_of_the_posteriors_on_the_test_episodes(tmp_path: Path) -> None:
    data = GaussianProcess(k_shot=4, n_query=5, val_episodes=2, test_episodes=EPISODES, eval_meta_batch_size=3)
    logged = run_test(tmp_path, ConditionalNeuralProcess(x_size=1, width=8, layers=1), data, ProcessFits(tasks=3))
    keys, shape = episode_keys(0, 2, range(EPISODES)), data.shapes["test"]
    y = data.dataset("test").__getitems__(range(EPISODES)).query.y[..., 0].double()
    known, averaged = data.source("test").posterior(keys, shape), data.source("test").averaged_posterior(keys, shape)
    expected = {
        "gp_log_likelihood": Normal(*map(torch.from_numpy, known)).log_prob(y),
        "gp_averaged_log_likelihood": torch.from_numpy(averaged.log_density),
        "gp_averaged_normal_log_likelihood": Normal(*map(torch.from_numpy, averaged[:2])).log_prob(y),
    }
    for name, values_TQ in expected.items():
        values = values_TQ.mean(1)
        assert logged[f"test/{name}"] == pytest.approx(values.mean().item(), rel=1e-5)
        assert logged[f"test/{name}_ci95"] == pytest.approx(1.96 * values.std().item() / EPISODES**0.5, rel=1e-5)
        assert logged["test/log_likelihood"] < logged[f"test/{name}"]


def test_fits_and_posteriors_have_means_and_bands_of_two_deviations() -> None:
    x = torch.linspace(-2, 2, 20)
    truth = torch.stack([x.sin(), torch.full_like(x, 0.1)], -1).expand(3, -1, -1)
    fits = torch.stack([x.cos(), torch.full_like(x, 0.5)], -1).expand(3, -1, -1)
    support = Batch(torch.zeros(3, 4, 1), torch.zeros(3, 4, 1))
    figure = process_fits(x, truth, support, fits, "Fits")
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]
    mean, low, high, prediction = (line.get_ydata() for line in figure.axes[2].lines)
    assert mean == pytest.approx(x.sin().numpy())
    assert high - low == pytest.approx(0.4)
    assert prediction == pytest.approx(x.cos().numpy())
    band = figure.axes[2].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2, abs=0.01)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["true posterior", "prediction", "support points"]
