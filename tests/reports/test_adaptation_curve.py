"""The adaptation curve against tests with each number of steps, and what it shows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Params
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.reports import AdaptationCurve
from lightning_meta.reports.adaptation_curve import adaptation_curve
from tests.conftest import sinusoids
from tests.reports.conftest import read, run_test


def maml(**kwargs: Any) -> MAML:
    torch.manual_seed(0)
    return MAML(MLP(hidden=(8,)), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE(), **kwargs)


def test_adaptation_curve_is_testing_with_each_number_of_steps(tmp_path: Path) -> None:
    curve = AdaptationCurve(max_steps=3)
    module = maml(inner_steps=1, eval_inner_steps=2)
    run_test(tmp_path, module, sinusoids(), curve)
    assert module.eval_inner_steps == 2
    assert curve.paths == [tmp_path / "pictures" / "adaptation_curve.png"]
    assert curve.paths[0].stat().st_size > 0
    rows = [{name: float(value) for name, value in row.items()} for row in read(tmp_path / "adaptation_curve.csv")]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        logged = run_test(tmp_path, maml(eval_inner_steps=int(row["step"])), sinusoids())
        for name in ("loss", "loss_ci95", "mse", "mse_ci95"):
            assert row[name] == pytest.approx(logged[f"test/{name}"], rel=1e-6)
    assert rows[0]["mse"] != pytest.approx(rows[3]["mse"], rel=1e-3)


def test_a_loss_that_is_the_metric_has_one_panel_and_what_is_not_trained_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[str], int | None]] = []

    def draw(steps: Any, curves: Any, episodes: int, inner_steps: int | None, title: str) -> Any:
        drawn.append(([*curves], inner_steps))
        return adaptation_curve(steps, curves, episodes, inner_steps, title)

    monkeypatch.setattr("lightning_meta.reports.adaptation_curve.adaptation_curve", draw)
    run_test(tmp_path, maml(inner_steps=1), sinusoids(), AdaptationCurve(max_steps=2))
    assert drawn == [(["mse"], None)]


def test_inner_steps_are_restored_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = maml(eval_inner_steps=2)
    adapt = module.adapt

    def fail_while_drawing(support: Batch) -> Params:
        if module.eval_inner_steps != 2:
            raise ZeroDivisionError
        return adapt(support)

    monkeypatch.setattr(module, "adapt", fail_while_drawing)
    with pytest.raises(ZeroDivisionError):
        run_test(tmp_path, module, sinusoids(), AdaptationCurve())
    assert module.eval_inner_steps == 2


def test_adaptation_curve_has_line_band_and_training_steps() -> None:
    mean, ci95 = torch.linspace(0.2, 0.9, 11), torch.full((11,), 0.1)
    figure = adaptation_curve(range(11), {"loss": (1 - mean, ci95), "acc": (mean, ci95)}, episodes=100, inner_steps=5)
    assert "over 100 episodes" in figure.get_suptitle()
    assert [axes.get_ylabel() for axes in figure.axes] == ["query loss", "query acc (%)"]
    curve, mark = figure.axes[1].lines
    assert curve.get_ydata() == pytest.approx(100 * mean.numpy())
    assert mark.get_xdata() == [5, 5]
    band = figure.axes[1].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(10) and band[:, 1].max() == pytest.approx(100)
