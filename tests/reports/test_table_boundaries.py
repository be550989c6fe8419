"""What classifiers say of the plane, and the figure."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_meta.algorithms import TabPFN
from lightning_meta.core import Batch
from lightning_meta.datamodules import TabularPrior
from lightning_meta.errors import ConfigError
from lightning_meta.reports import TableBoundaries, table_boundaries
from tests.reports.conftest import run_test


def test_planes_have_what_the_classifiers_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, drawn = TabPFN(features=3, width=8, depth=2, heads=2).eval(), {}
    draw = table_boundaries.table_boundaries
    monkeypatch.setattr(
        table_boundaries, "table_boundaries", lambda planes, title: drawn.update(planes) or draw(planes, title)
    )
    data = TabularPrior(features=3, val_episodes=2, test_episodes=2)
    run_test(tmp_path, module, data, report := TableBoundaries(per_class=5, resolution=7))
    assert report.paths[0].stat().st_size > 1000
    x, y = table_boundaries.examples()["iris (petals)"]
    assert y[:15].tolist().count(0) == y[:15].tolist().count(1) == y[:15].tolist().count(2) == 5
    plane = drawn["iris (petals)"]
    left, right, bottom, top = plane.extent
    grid = np.array([[a, b] for b in np.linspace(bottom, top, 7) for a in np.linspace(left, right, 7)])
    with torch.no_grad():
        table = module.adapt(Batch(torch.from_numpy(x[:15]).float(), torch.from_numpy(y[:15])))
    chances = module.predict(table, torch.from_numpy(grid).float())[:, :3].numpy()
    np.testing.assert_allclose(plane.chances["TabPFN"].reshape(-1, 3), chances, atol=1e-5)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[:15], y[:15])
    np.testing.assert_allclose(plane.chances["logistic regression"].reshape(-1, 3), linear.predict_proba(grid))
    assert plane.right["logistic regression"] == pytest.approx(linear.score(x[15:75], y[15:75]))
    with pytest.raises(ConfigError, match="per_class=1 must be at least 2"):
        TableBoundaries(per_class=1)


def test_colours_are_mixed_by_the_chances() -> None:
    chances = np.array([[[1.0, 0], [0, 1]], [[0.5, 0.5], [0, 1]]])
    points = np.array([[0.0, 0], [1, 1]])
    plane = table_boundaries.Plane(points, np.array([0, 1]), {"one": chances}, {"one": 0.75}, (0, 2, 0, 2))
    axes = table_boundaries.table_boundaries({"table": plane}, "A title").axes[0]
    colours = axes.images[0].get_array()
    np.testing.assert_allclose(colours[1, 0], (colours[0, 0] + colours[0, 1]) / 2)
    assert (axes.get_title(), axes.get_ylabel(), axes.texts[0].get_text()) == ("one", "table", "75 %")
