"""Tasks that arrive: which there are at a time, what each brings, and how many examples a new one needs."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import Arrivals, Mixed, Sinusoid, UniformTasks
from lightning_meta.datamodules.functions.sinusoid import SinusoidSource
from lightning_meta.errors import ConfigError
from tests.conftest import blobs
from tests.datamodules.test_episodes import assert_same, identities, numbered, ready

EVERY, META = 5, 6  # meta-batches between arrivals; episodes in each
FIRST = range(4 * EVERY * META)  # the episodes until the fifth task comes


def arriving(**overrides: Any) -> Any:
    return numbered(arrivals=Arrivals(**(dict(every=EVERY, examples=6) | overrides)))


def classes_of(data: Any, ids: Any) -> list[frozenset[int]]:
    """The classes of each episode, by which its task is known."""
    episodes = data.dataset("train").__getitems__(ids)
    return [frozenset(c for c, _ in identities(x)) for x in episodes.support.x]


def test_there_are_the_tasks_that_have_come_and_the_first_of_the_stream_come_first() -> None:
    data, plain = arriving(), numbered(k_shot=2, n_query=4)
    known = classes_of(plain, range(4))
    found = classes_of(data, FIRST)
    assert len(set(known)) == 4
    for come in range(1, 5):
        there = found[(come - 1) * EVERY * META : come * EVERY * META]
        assert set(there) == set(known[:come]), "every task so far, and none that is yet to come"


def test_each_task_so_far_is_as_likely_as_the_others() -> None:
    source = arriving(tasks=4).dataset("train").source
    ids = range(10**6, 10**6 + 4000)
    (drawn, _), plain = source.draw_episodes(0, "train", ids, EpisodeShape(4, 2, 3))[1], numbered(n_query=4)
    tasks = plain.dataset("train").draw(range(4))[0].rows[:, 0, :, 0]
    counts = (drawn.rows[:, None, 0, :, 0] == tasks).all(-1).sum(0)
    assert counts.sum() == 4000
    assert ((counts - 1000).abs() < 4 * (4000 * 0.25 * 0.75) ** 0.5).all()


def test_a_task_brings_so_many_examples_which_are_shared_out_anew() -> None:
    data = arriving(tasks=1)
    episodes = data.dataset("train").__getitems__(range(200))
    assert episodes.support.y[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert episodes.query.y[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    brought, labels = defaultdict(set), set()
    for support, y, query in zip(episodes.support.x, episodes.support.y, episodes.query.x, strict=True):
        assert not set(identities(support)) & set(identities(query))
        for c, e in identities(support) + identities(query):
            brought[c].add(e)
        labels |= {(c, label) for (c, _), label in zip(identities(support), y.tolist(), strict=True)}
    assert [len(examples) for examples in brought.values()] == [6] * 4
    assert len(labels) == 4, "a class of a task keeps its label"
    assert not torch.equal(episodes.support.x[0], episodes.support.x[1])


def test_points_of_a_wave_that_came_are_on_it() -> None:
    """Against the formula of the wave, of the key of the task."""
    data = ready(Sinusoid(k_shot=3, n_query=2, meta_batch_size=2, arrivals=Arrivals(every=1, examples=5, tasks=1)))
    episode = data.dataset("train").__getitems__([7])
    x = torch.cat([episode.support.x, episode.query.x], 1)[..., 0].double().numpy()
    y = torch.cat([episode.support.y, episode.query.y], 1)[..., 0].double().numpy()
    np.testing.assert_allclose(SinusoidSource().wave(episode_keys(0, 0, [0]), x), y, atol=1e-5)


def test_an_episode_is_the_same_alone_and_validation_and_test_are_those_of_any_run() -> None:
    data, plain = arriving(), numbered()
    together = data.dataset("train").__getitems__(range(40))
    alone = data.dataset("train")[33]
    assert torch.equal(together.query.x[33], alone.query.x)
    for split in ("val", "test"):
        assert_same(data.dataset(split).__getitems__(range(5)), plain.dataset(split).__getitems__(range(5)))
    assert data.trained_on() == "Numbered, task after task (Arrivals(every=5, examples=6, tasks=None, learned_at=None))"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arriving(examples=4), r"k_shot=2 \+ n_query=3 examples .* brings 4; raise data.arrivals.examples"),
        (lambda: arriving(every=0), "arrivals.every=0 must be at least 1"),
        (lambda: ready(blobs(arrivals=Arrivals(), variable=UniformTasks((2, 3), (1, 1), (2, 2)))), "are of one shape"),
        (lambda: Mixed({"blobs": blobs(arrivals=Arrivals())}), "set data.arrivals of the mixed data alone"),
        (lambda: arriving(examples=21), "20"),
    ],
)
def test_what_cannot_be_is_said(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
