"""A trained TabPFN as scikit-learn sees it: by its own checks of estimators, and what the module itself predicts."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import check_estimator

from lightning_meta.algorithms import TabPFN, TabPFNRegression
from lightning_meta.cli import main, predict
from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import TabularPrior
from lightning_meta.interop.sklearn import TabPFNClassifier, TabPFNRegressor


@pytest.fixture
def module() -> TabPFN:
    torch.manual_seed(0)
    return TabPFN(features=6, width=16, depth=2, heads=2)


def rows(columns: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(20, columns)).astype(np.float32), np.array(["cat", "dog", "cow", "dog"] * 5)


def test_predictions_are_those_of_the_module(module: TabPFN) -> None:
    x, y = rows()
    found = TabPFNClassifier(module, orders=1).fit(x[:15], y[:15])
    assert found.classes_.tolist() == ["cat", "cow", "dog"]
    labels = torch.tensor([["cat", "cow", "dog"].index(name) for name in y[:15]])
    with torch.no_grad():
        table = module.eval().adapt(Batch(torch.from_numpy(x[:15]), labels))
    expected = module.predict(table, torch.from_numpy(x[15:]))[:, :3].numpy()
    np.testing.assert_allclose(found.predict_proba(x[15:]), expected, rtol=1e-5)
    assert found.predict(x[15:]).tolist() == [found.classes_[k] for k in expected.argmax(1)]


def test_the_mean_is_taken_over_orders_of_the_columns(module: TabPFN) -> None:
    """In the first they are as in the table; of too many columns each order has as many as the network takes."""
    x, y = rows()
    several = TabPFNClassifier(module, orders=3, seed=1).fit(x, y)
    each = [TabPFNClassifier(module, orders=1).fit(x[:, order], y).predict_proba(x[:, order])
            for order in several.orders_]  # fmt: skip
    np.testing.assert_allclose(several.predict_proba(x), np.mean(each, 0), rtol=1e-5)
    assert several.orders_[0].tolist() == [0, 1, 2, 3] and len({tuple(order) for order in several.orders_}) > 1
    wide = TabPFNClassifier(module).fit(*rows(columns=9))
    assert all(len(set(order)) == 6 for order in wide.orders_)
    assert set(np.concatenate(wide.orders_)) == set(range(9))


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_a_run_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    sizes = "--trainer.max_steps 1 --data.val_episodes 1 --data.meta_batch_size 1 --trainer.logger false"
    others = "--trainer.accelerator cpu --test_after_fit false --model.depth 1"
    cli = main(["fit", "--config", "tab_pfn_tabularprior_5w10s", *sizes.split(), *others.split()])
    x, y = rows()
    found = TabPFNClassifier("tab_pfn_tabularprior_5w10s").fit(x, y)
    expected = TabPFNClassifier(cli.model.cpu()).fit(x, y)
    np.testing.assert_allclose(found.predict_proba(x), expected.predict_proba(x), rtol=1e-5)
    lines = [",".join(map(str, [*row, name])) for row, name in zip(x.tolist(), y, strict=True)]
    (tmp_path / "known.csv").write_text("\n".join(["a,b,c,d,animal", *lines]))
    (tmp_path / "asked.csv").write_text("\n".join(["a,b,c,d", *(line.rpartition(",")[0] for line in lines)]))
    predict.main(["tab_pfn_tabularprior_5w10s", "--support", "known.csv", "--query", "asked.csv", "--out", "out"])
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == expected.predict(x).tolist()


def test_a_regressor_predicts_the_mixture_of_its_orders() -> None:
    torch.manual_seed(0)
    module, (x, _) = TabPFNRegression(features=6, width=16, depth=2, heads=2), rows()
    y = 100 + 20 * x[:, 0]
    one = TabPFNRegressor(module, orders=1).fit(x[:15], y[:15])
    with torch.no_grad():
        table = module.eval().adapt(Batch(torch.from_numpy(x[:15]), torch.from_numpy(y[:15])[:, None]))
    expected = module.predict(table, torch.from_numpy(x[15:]))[:, 0].numpy()
    np.testing.assert_allclose(one.predict(x[15:]), expected, rtol=1e-5)
    several = TabPFNRegressor(module, orders=3, seed=1).fit(x, y)
    each = [TabPFNRegressor(module, orders=1).fit(x[:, order], y).predict(x[:, order], return_std=True)
            for order in several.orders_]  # fmt: skip
    means, stds = (np.stack(part) for part in zip(*each, strict=True))
    mean, std = several.predict(x, return_std=True)
    np.testing.assert_allclose(mean, means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std**2, (stds**2 + means**2).mean(0) - means.mean(0) ** 2, rtol=1e-3)


def test_classifiers_and_regressors_are_not_taken_for_each_other(module: TabPFN) -> None:
    with pytest.raises(ValueError, match="takes a TabPFNRegression, but was given a TabPFN"):
        TabPFNRegressor(module).fit(rows()[0], np.arange(20))


@pytest.mark.slow
def test_scikit_learn_takes_it_for_a_regressor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, as one of the checks asks for an R2 of a half."""
    torch.manual_seed(0)
    source, shape = TabularPrior(targets="numbers", features=12).load_source("train"), EpisodeShape(1, 60, 30)
    module = TabPFNRegression(features=12, width=32, depth=2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.003, total_steps=1500)
    for step in range(1500):
        tasks = source.sample(episode_keys(0, 0, range(8 * step, 8 * step + 8)), shape)
        optimizer.zero_grad()
        module.play(tasks).loss.mean().backward()
        optimizer.step()
        rates.step()
    monkeypatch.setattr("lightning_meta.interop.sklearn.trained", lambda place: module)
    checks = check_estimator(TabPFNRegressor("a_run", orders=2))
    assert len(checks) > 40 and all(check["status"] != "failed" for check in checks)


@pytest.mark.slow
def test_scikit_learn_takes_it_for_an_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained a little, as one of the checks asks for accuracy; by name, because modules have no equal hashes."""
    torch.manual_seed(0)
    module, source, shape = TabPFN(width=32, depth=2), TabularPrior().load_source("train"), EpisodeShape(3, 10, 10)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    for step in range(100):
        tasks = source.sample(episode_keys(0, 0, range(8 * step, 8 * step + 8)), shape)
        optimizer.zero_grad()
        module.play(tasks).loss.mean().backward()
        optimizer.step()
    monkeypatch.setattr("lightning_meta.interop.sklearn.trained", lambda place: module)
    checks = check_estimator(TabPFNClassifier("a_run", orders=2))
    assert len(checks) > 40 and all(check["status"] != "failed" for check in checks)
