"""How many examples a new task needs: against counting by hand, and tasks played with fewer examples."""

from pathlib import Path

import torch

from lightning_meta.algorithms import MAML
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import Arrivals
from lightning_meta.reports import ExamplesNeeded
from lightning_meta.reports.examples_needed import examples_needed, fewer, first_within
from tests.conftest import blobs, conv4
from tests.datamodules.test_episodes import ready
from tests.reports.conftest import run_test


def test_the_first_number_of_examples_that_is_enough() -> None:
    values = torch.tensor([[3.0, 0.5, 2.0], [1.0, 2.0, 2.0], [0.0, 0.0, 1.5]])
    assert first_within(values, 1.0, "min").tolist() == [2, 1, 4]
    assert first_within(values, 2.0, "max").tolist() == [1, 2, 1]


def test_what_is_logged_is_what_tasks_with_fewer_examples_have(tmp_path: Path) -> None:
    """Played one by one, with support sets that are put together here."""
    settings = dict(k_shot=3, test_episodes=6, eval_meta_batch_size=4)
    module = MAML(conv4(), n_way=3, inner_lr=0.2, eval_inner_steps=3)
    data = blobs(arrivals=Arrivals(learned_at=0.75), **settings)
    report = ExamplesNeeded()
    logged = run_test(tmp_path, module, data, report)
    episodes = ready(blobs(**settings)).dataset("test").__getitems__(range(6))
    module.eval()
    needed = []
    for task in range(6):
        x, y, query = episodes.support.x[task], episodes.support.y[task], episodes.query
        right = []
        for n in range(1, 4):
            rows = [row for c in range(3) for row in (y == c).nonzero().flatten().tolist()[:n]]
            preds = module.predict(module.adapt(Batch(x[rows], y[rows])), query.x[task])
            right.append((preds.argmax(-1) == query.y[task]).double().mean() >= 0.75)
        needed.append(right.index(True) + 1 if True in right else 4)
    assert len(set(needed)) > 1
    assert abs(logged["test/examples_needed"] - sum(needed) / 6) < 1e-6
    assert abs(logged["test/learned"] - sum(n < 4 for n in needed) / 6) < 1e-6
    assert [path.stem for path in report.paths] == ["examples_needed"]


def test_fewer_examples_are_the_first_of_each_class() -> None:
    y = torch.tensor([[0, 0, 0, 1, 1, 1]])
    episode = Episode(Batch(torch.arange(6)[None], y), Batch(torch.zeros(1, 1), torch.zeros(1, 1)))
    assert fewer(episode, 2, 2).support.x.tolist() == [[0, 1, 3, 4]]


def test_what_diverges_on_few_examples_does_not_flatten_the_others() -> None:
    curve = torch.tensor([1e4, 3.0, 2.0, 1.0]), torch.tensor([2e4, 0.5, 0.4, 0.2])
    (axes,) = examples_needed(curve, "mse", 1.0).axes
    assert 3 < axes.get_ylim()[1] < 20
