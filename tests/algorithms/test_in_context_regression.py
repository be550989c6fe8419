"""In-context regression: the squared error of a PFN's network, and that it learns to use its examples."""

import pytest
import torch

from lightning_meta.algorithms import InContextRegression
from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import LinearFunctions
from tests.conftest import Make, random_functions

REGRESSORS: dict[str, Make] = {
    "in_context_regression": lambda: InContextRegression(x_size=1, width=16, depth=2, heads=2)
}


def test_the_loss_is_the_squared_error_of_the_predictions() -> None:
    module, tasks = InContextRegression(x_size=1, width=16, depth=2, heads=2).double().eval(), random_functions()
    out = module.play(tasks)
    assert out.preds.shape == tasks.query.y.shape
    torch.testing.assert_close(out.loss, (out.preds - tasks.query.y).square().mean((1, 2)))
    torch.testing.assert_close(module.metric.per_episode(out.preds, tasks.query.y), out.loss)
    out.loss.sum().backward()
    idle = {name for name, p in module.named_parameters() if p.grad is None}
    assert not idle  # DistributedDataParallel would wait for them


@pytest.mark.slow
def test_it_learns_functions_of_one_variable_in_context() -> None:
    """y = w x: one example tells w. Zero, which it predicts at first, has error 1."""
    torch.manual_seed(0)
    source, shape = LinearFunctions(dims=1).load_source("train"), EpisodeShape(1, 4, 8)
    module = InContextRegression(x_size=1, width=16, depth=2, heads=2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
    for step in range(150):
        tasks: Episode = source.sample(episode_keys(0, 0, range(64 * step, 64 * step + 64)), shape)
        optimizer.zero_grad()
        module.play(tasks).loss.mean().backward()
        optimizer.step()
    unseen = source.sample(episode_keys(0, 2, range(200)), shape)
    assert module.eval().play(unseen).loss.mean() < 0.3
    wrong = unseen.support._replace(y=-unseen.support.y)
    assert module.play(Episode(wrong, unseen.query)).loss.mean() > 2
