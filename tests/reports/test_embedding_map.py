"""Which modules have a map of their embedding, and of what, in real, tiny tests of the Trainer; what it shows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from lightning_meta.algorithms import ANIL, MAML, Baseline, ProtoNet
from lightning_meta.backbones import MLP, support_statistics
from lightning_meta.core import Batch
from lightning_meta.datamodules import Sinusoid
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import EpisodicModule
from lightning_meta.reports import EmbeddingMap
from lightning_meta.reports import embedding_map as report
from lightning_meta.reports.embedding_map import embedding_map, principal_plane
from tests.conftest import blobs, conv4
from tests.reports.conftest import run_test


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of the pictures that were drawn."""
    calls: list[Any] = []
    monkeypatch.setattr(report, "embedding_map", lambda *args: calls.append(args) or embedding_map(*args))
    return calls


def pictures(folder: Path, module: EpisodicModule, data: EpisodicDataModule) -> list[Path]:
    drawing = EmbeddingMap(episode=1)
    run_test(folder, module, data, drawing)
    return drawing.paths


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
@pytest.mark.parametrize("algorithm", [ProtoNet, Baseline])
def test_draws_the_features_that_are_compared(algorithm: Any, norm: str, drawn: list[Any], tmp_path: Path) -> None:
    module, data = algorithm(conv4(norm)), blobs()
    (path,) = pictures(tmp_path, module, data)
    assert path == tmp_path / "pictures" / "embedding.png"
    assert path.stat().st_size > 0
    ((support, query, preds, title, names),) = drawn
    tasks = data.dataset("test").__getitems__([1])
    with torch.no_grad():
        statistics = support_statistics(module.backbone, {}, tasks.support.x[0])
        torch.testing.assert_close(support.x, module.backbone(tasks.support.x[0]))
        torch.testing.assert_close(query.x, functional_call(module.backbone, statistics, (tasks.query.x[0],)))
        torch.testing.assert_close(preds, module.eval().play(tasks).preds[0])
    assert support.y.equal(tasks.support.y[0])
    assert query.y.equal(tasks.query.y[0])
    assert title.endswith("test episode 1")
    assert names is None  # of synthetic classes
    assert not module.backbone._forward_hooks


def test_an_embedding_that_is_adapted_or_does_not_exist_is_skipped(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(inner_lr=0.1, inner_steps=2)
    assert not pictures(tmp_path, MAML(conv4(), n_way=3, **settings), blobs())
    assert pictures(tmp_path, ANIL(conv4(), n_way=3, **settings), blobs())  # adapts its head alone
    regression = ANIL(MLP(hidden=(4,)), n_way=1, loss_fn=torch.nn.functional.mse_loss, metric=EpisodicMSE())
    assert not pictures(tmp_path, regression, Sinusoid(test_episodes=2))


def test_the_plane_is_that_of_the_largest_variances() -> None:
    """Points in a rotated plane: distances are kept, and the shares are those of the eigenvalues."""
    flat = torch.randn(30, 2, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q[:2]
    points = flat @ rotation + 7
    shown, share = principal_plane(points, points)
    torch.testing.assert_close(torch.cdist(shown, shown), torch.cdist(flat, flat))
    values = torch.linalg.eigvalsh(flat.T.cov()).flip(0)
    assert share == pytest.approx((values / values.sum()).tolist())
    torch.testing.assert_close(principal_plane(-points, -points)[0].abs(), shown.abs())


def test_features_of_one_dimension_have_a_map_too() -> None:
    shown, share = principal_plane(torch.randn(4, 1), torch.randn(6, 1))
    assert shown.shape == (6, 2)
    assert share == pytest.approx([1, 0])


@pytest.mark.parametrize("n_way", [3, 9])
def test_every_example_and_class_mean_is_drawn(n_way: int) -> None:
    labels = torch.arange(n_way).repeat(2)
    support, query = Batch(torch.randn(2 * n_way, 4), labels), Batch(torch.randn(2 * n_way, 4), labels)
    preds = torch.nn.functional.one_hot(labels, 2 * n_way).double()
    preds[0] = preds[1]
    figure = embedding_map(support, query, preds, "ProtoNet on Blobs")
    assert figure.get_suptitle() == f"ProtoNet on Blobs\n{2 * n_way - 1} of {2 * n_way} queries right " + (
        "(83%)" if n_way == 3 else "(94%)"
    )
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [str(label) for label in range(n_way)]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 4 * n_way + n_way
    assert len({tuple(points.get_edgecolor()[0]) for points in axes.collections[::4]}) == n_way
