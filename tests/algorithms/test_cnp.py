"""Conditional neural processes against the direct formula, with PyTorch's own distributions."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from lightning_meta.algorithms import AttentiveNeuralProcess, ConditionalNeuralProcess, NeuralProcess
from lightning_meta.algorithms.processes.cnp import keep_some
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicLogLikelihood
from tests.conftest import Make, random_episodes, random_functions

REGRESSORS: dict[str, Make] = {"cnp": lambda: ConditionalNeuralProcess(width=16, layers=2)}


def cnp(**options: float) -> ConditionalNeuralProcess:
    return ConditionalNeuralProcess(width=8, layers=2, **options).double()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_predictions_and_loss_equal_the_direct_formula(mode: str) -> None:
    module, tasks = cnp(task_mode=mode).eval(), random_functions()
    out = module.play(tasks)
    for t in range(3):
        (x, y), (query_x, query_y) = (Batch(*(leaf[t] for leaf in batch)) for batch in tasks)
        codes = [module.encoder(torch.cat([x[i], y[i]])[None])[0] for i in range(len(x))]
        code = sum(codes) / len(codes)
        for q in range(len(query_x)):
            mean, spread = module.decoder(torch.cat([query_x[q], code])[None])[0]
            std = 0.1 + 0.9 * F.softplus(spread)
            torch.testing.assert_close(out.preds[t, q, 0], torch.stack([mean, std]), rtol=1e-10, atol=1e-12)
        distribution = Normal(*out.preds[t].unbind(-1))
        torch.testing.assert_close(out.loss[t], -distribution.log_prob(query_y).mean())
        torch.testing.assert_close(out.logs["mse"][t], F.mse_loss(out.preds[t, ..., 0], query_y))


def test_the_order_of_the_support_points_does_not_matter_in_evaluation() -> None:
    module, (support, query) = cnp().eval(), random_functions()
    order = torch.randperm(support.x.shape[1])
    shuffled = Episode(Batch(support.x[:, order], support.y[:, order]), query)
    torch.testing.assert_close(module.play(shuffled).preds, module.play(Episode(support, query)).preds)


def test_every_number_of_points_is_equally_likely_in_training() -> None:
    """With u uniform, the number is uniform on 0, ..., S; those without a point keep one."""
    kept = keep_some(torch.zeros(20_000, 4, 1))
    assert set(kept.unique().tolist()) == {0, 1}
    counts = kept.sum(1).long().bincount(minlength=5) / len(kept)
    torch.testing.assert_close(counts, torch.tensor([0, 0.4, 0.2, 0.2, 0.2]), rtol=0, atol=0.02)
    torch.testing.assert_close(kept.mean(0), torch.full((4,), 0.55), rtol=0, atol=0.02)


def test_training_reads_only_the_points_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (support, query) = cnp().train(), random_functions(n_tasks=1)
    draws = iter([torch.tensor([[0.1, 0.9, 0.3, 0.6, 0.4, 0.8]]), torch.tensor([[0.5]])])
    monkeypatch.setattr("torch.rand_like", lambda x: next(draws))
    few = Batch(support.x[:, [0, 2, 4]], support.y[:, [0, 2, 4]])
    trained = module.play(Episode(support, query))
    torch.testing.assert_close(trained.preds, module.eval().play(Episode(few, query)).preds)


def test_tasks_keep_points_of_their_own() -> None:
    """How many are kept is drawn for each task, not once for the meta-batch."""
    assert len(keep_some(torch.zeros(50, 10, 1)).sum(1).unique()) > 5


@pytest.mark.parametrize("algorithm", [ConditionalNeuralProcess, NeuralProcess, AttentiveNeuralProcess])
def test_every_layer_starts_as_in_the_authors_code(algorithm: type[ConditionalNeuralProcess]) -> None:
    """Glorot's uniform distribution, whose variance is 2 / (inputs + outputs); biases are zero."""
    layers = [layer for layer in algorithm(width=64).modules() if isinstance(layer, nn.Linear)]
    assert len(layers) >= 8
    for layer in layers:
        sizes, std = sum(layer.weight.shape), layer.weight.std().item()
        assert std == pytest.approx((2 / sizes) ** 0.5, rel=0.2)  # the smallest layer has 128 weights
        assert layer.weight.abs().max() <= (6 / sizes) ** 0.5
        assert layer.bias is None or not layer.bias.any()


def test_a_point_of_several_numbers_has_their_joint_density() -> None:
    module = ConditionalNeuralProcess(x_size=2, y_size=3, width=8, layers=1).double().eval()
    support, query = (Batch(torch.randn(2, n, 2).double(), torch.randn(2, n, 3).double()) for n in (4, 5))
    out = module.play(Episode(support, query))
    assert out.preds.shape == (2, 5, 3, 2)
    expected = Normal(*out.preds.unbind(-1)).log_prob(query.y).sum(2).mean(1)
    torch.testing.assert_close(out.loss, -expected)
    torch.testing.assert_close(EpisodicLogLikelihood.per_episode(out.preds, query.y), expected)


def test_other_sizes_and_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"x_size=1 and y_size=1, but .* \(3, 6, 1, 16, 16\) and .* \(3, 6\)"):
        cnp().play(random_episodes())
    with pytest.raises(ConfigError, match="min_std=0 must be positive"):
        cnp(min_std=0)
