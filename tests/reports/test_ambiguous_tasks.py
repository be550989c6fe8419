"""Ambiguous tasks: each predictor of BMAML and PLATIPUS is drawn, and their mean is what the module predicts."""

import pytest
import torch

from lightning_meta.algorithms import BMAML, MAML, PLATIPUS
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch
from lightning_meta.modules import EpisodicModule
from lightning_meta.reports.ambiguous_tasks import GRID, ambiguous_tasks, predictors

MODULES = {
    "bmaml": lambda: BMAML(MLP(2, (8,)), n_way=2, particles=3),
    "platipus": lambda: PLATIPUS(MLP(2, (8,)), n_way=2, draws=4, std=0.3),
    "maml": lambda: MAML(MLP(2, (8,)), n_way=2),
}
SUPPORT = Batch(torch.tensor([[0.9, 0.9], [0.1, 0.0]]), torch.tensor([0, 1]))


@pytest.mark.parametrize(("name", "count"), [("bmaml", 3), ("platipus", 4), ("maml", 1)])
def test_the_mean_of_the_predictors_is_the_prediction(name: str, count: int) -> None:
    module: EpisodicModule = MODULES[name]().eval()
    x = 2 * torch.rand(7, 2) - 1
    found = predictors(module, SUPPORT, x)
    assert found.shape == (count, 7)
    torch.testing.assert_close(found.mean(0), module.predict(module.adapt(SUPPORT), x)[:, 1])
    assert count == 1 or (found - found[0]).abs().max() > 1e-3


def test_a_border_is_drawn_where_a_predictor_is_undecided() -> None:
    """Of three predictors one is sure everywhere and has none; the first coordinate goes to the right."""
    line = torch.linspace(-1, 1, GRID)
    right = torch.cartesian_prod(line, line)[:, 0]
    answers = torch.stack([(8 * (right - 0.5)).sigmoid(), (8 * (right + 0.5)).sigmoid(), torch.ones(GRID**2)])
    figure = ambiguous_tasks(Batch(*(leaf[None] for leaf in SUPPORT)), [answers], torch.tensor([[0, 0, 0.4]]).numpy())
    (axes,) = figure.axes
    borders = [path.vertices for c in axes.collections if hasattr(c, "levels") for path in c.get_paths()]
    assert [round(float(points[:, 0].mean()), 2) for points in borders] == [0.5, -0.5]
    assert axes.patches[0].radius == pytest.approx(0.4)
