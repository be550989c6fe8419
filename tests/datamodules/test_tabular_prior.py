"""Made-up tables: functions of their key, of the sizes that were asked for, and something to learn in most of them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import TabularPrior
from lightning_meta.datamodules.tables.tabular_prior import by_logarithm
from lightning_meta.errors import ConfigError

SHAPE = EpisodeShape(n_way=4, k_shot=10, n_query=10)


def test_a_table_is_a_function_of_its_key() -> None:
    source = TabularPrior(features=7).load_source("train")
    many, alone = source.sample(episode_keys(0, 0, range(20)), SHAPE), source.sample(episode_keys(0, 0, [13]), SHAPE)
    for batch, of_one in zip(many, alone, strict=True):
        torch.testing.assert_close(batch.x[13], of_one.x[0])
        assert batch.y[13].equal(of_one.y[0])
    assert many.support.x.shape == (20, 40, 7) and many.query.y.shape == (20, 40)


def test_tables_have_2_to_n_way_classes_and_2_to_all_columns() -> None:
    tasks = TabularPrior(features=7).load_source("train").sample(episode_keys(0, 0, range(400)), SHAPE)
    columns = (tasks.support.x.std(1) > 0).sum(1)
    assert set(columns.tolist()) == set(range(2, 8))
    most = torch.cat([tasks.support.y, tasks.query.y], 1).amax(1) + 1
    assert most.max() == 4 and (most == 2).double().mean() > 0.2
    shares = torch.stack([(tasks.query.y == name).double().mean() for name in range(4)])
    assert shares.diff().max() < 0.02  # fewer tables have a class of a later name


def test_columns_tell_the_class_and_shuffled_labels_tell_nothing() -> None:
    tasks = TabularPrior().load_source("train").sample(episode_keys(0, 0, range(60)), SHAPE)
    right, blind, largest = [], [], []
    for t in range(60):
        (x, y), (query_x, query_y) = ((leaf[t].numpy() for leaf in batch) for batch in tasks)
        if len(set(y)) < 2:
            continue
        right.append(LogisticRegression(max_iter=500).fit(x, y).score(query_x, query_y))
        shuffled = np.random.default_rng(t).permutation(y)
        blind.append(LogisticRegression(max_iter=500).fit(x, shuffled).score(query_x, query_y))
        largest.append(np.bincount(query_y).max() / len(query_y))
    assert np.mean(right) > np.mean(largest) + 0.1
    assert np.mean(blind) < np.mean(largest)


def test_columns_of_few_causes_say_much_the_same() -> None:
    """As those of real tables: iris has a mean correlation of 0.59, which independent columns would never have."""
    tasks = TabularPrior().load_source("train").sample(episode_keys(0, 0, range(400)), SHAPE)
    columns_T = (tasks.support.x.std(1) > 0).sum(1).tolist()
    assert np.mean([count <= 7 for count in columns_T]) == pytest.approx(np.log(8 / 2) / np.log(31 / 2), abs=0.08)
    found = []
    for x, count in zip(tasks.support.x.numpy(), columns_T, strict=True):
        if 3 <= count <= 6:
            found.append(np.abs(np.corrcoef(x[:, :count].T)[np.triu_indices(count, 1)]).mean())
    assert np.mean(np.array(found) > 0.5) > 0.2 and np.mean(np.array(found) < 0.3) > 0.2


def test_classes_are_as_far_apart_in_few_columns_as_in_many() -> None:
    """Clusters: a factor between 0 and 4 has a mean square of 16 / 3, the difference of two centres twice as much."""
    source, keys = TabularPrior(n_way=2).load_source("train"), episode_keys(0, 0, range(400))
    for columns in (4, 30):
        x, y = source._clusters(keys, np.full(400, 2), np.full(400, columns), 200)
        means = [x_MF[y_M == 1].mean(0) - x_MF[y_M == 0].mean(0) for x_MF, y_M in zip(x, y, strict=True)]
        square = np.square(means)[:, :columns].sum(1).mean()
        spread = np.mean([x_MF[y_M == 0].var(0).mean() for x_MF, y_M in zip(x, y, strict=True)])
        assert square - columns * spread * 4 / 200 == pytest.approx(2 * 16 / 3, rel=0.15)
        assert spread == pytest.approx(1 + 0.2**2, rel=0.1)


def test_counts_by_their_logarithm() -> None:
    counts = np.bincount(by_logarithm(episode_keys(0, 0, range(20000)), 1, 3), minlength=4)[1:] / 20000
    np.testing.assert_allclose(counts, np.log([2, 3 / 2, 4 / 3]) / np.log(4), atol=0.015)


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_way=1, but a table has at least 2 classes"):
        TabularPrior(n_way=1).load_source("train").check(EpisodeShape(1, 1, 1))
