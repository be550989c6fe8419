"""Similarity before and after adaptation, in real, tiny tests of the Trainer, and its bars."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import ANIL, BOIL, MAML, MAMLPlusPlus
from lightning_meta.backbones import MLP, Backbone, ResNet12, WideResNet
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.functions.sinusoid import Sinusoid
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import EpisodicModule
from lightning_meta.reports import LayerSimilarity
from lightning_meta.reports.layer_similarity import layer_similarity, layers_of
from tests.conftest import SIZE, blobs, conv4
from tests.reports.conftest import read, run_test

EPISODES = 6
BLOCKS = ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]


def run(folder: Path, module: EpisodicModule, data: EpisodicDataModule, **kwargs: Any) -> list[dict[str, str]]:
    """Rows of the table after a test; none where it was not written."""
    drawing = LayerSimilarity(EPISODES)
    run_test(folder, module, data, drawing, **kwargs)
    path = folder / "layer_similarity.csv"
    picture = folder / "pictures" / "layer_similarity.png"
    assert drawing.paths == ([picture] if path.exists() else [])
    if not path.exists():
        return []
    assert picture.stat().st_size > 0
    return read(path)


def cka_of(rows: list[dict[str, str]]) -> dict[str, float]:
    return {row["layer"]: float(row["cka"]) for row in rows}


def make(algorithm: type[MAML] = MAML, backbone: Callable[[], Backbone] = conv4, **overrides: Any) -> MAML:
    torch.manual_seed(0)
    return algorithm(backbone(), **(dict(n_way=3, inner_lr=0.5, inner_steps=1, eval_inner_steps=2) | overrides))


def cka(x: Tensor, y: Tensor) -> float:
    """Debiased CKA by the formula of Song et al. (2012)."""

    def hsic_1(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        n = len(k)
        k, l = (m - m.diag().diag() for m in (k, l))  # noqa: E741
        return (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l).sum() / (n - 2)

    k, l = (m.double().flatten(1) @ m.double().flatten(1).T for m in (x, y))  # noqa: E741
    return float(hsic_1(k, l) / (hsic_1(k, k) * hsic_1(l, l)).sqrt())


def outputs(learner: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Of the blocks and the head, block after block without hooks."""
    backbone, head = learner
    maps = [x]
    for block in backbone.blocks:
        maps.append(block(maps[-1]))
    return [*maps[1:], head(backbone.pool(maps[-1]).flatten(1))]


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_equals_two_networks_compared_by_hand(norm: str, tmp_path: Path) -> None:
    """A network with theta beside one that was trained on the support set by a torch optimizer."""
    module, data = make(backbone=lambda: conv4(norm)), blobs()
    rows = run(tmp_path, module, data)
    similarities = []
    for index in range(EPISODES):
        episode = data.dataset("test").__getitems__([index])
        (support_x, support_y), (query_x, _) = ((part.x[0], part.y[0]) for part in episode)
        adapted = copy.deepcopy(module.learner)
        sgd = torch.optim.SGD(adapted.parameters(), lr=0.5)
        for _ in range(2):
            sgd.zero_grad()
            F.cross_entropy(adapted(support_x), support_y).backward()
            sgd.step()
        before, after = (query_outputs(learner, support_x, query_x, norm) for learner in (module.learner, adapted))
        similarities.append([cka(x, y) for x, y in zip(before, after, strict=True)])
    values = torch.tensor(similarities, dtype=torch.float64)
    assert [row["layer"] for row in rows] == [*BLOCKS, "head"]
    for row, mean, std in zip(rows, values.mean(0).tolist(), values.std(0).tolist(), strict=True):
        assert float(row["cka"]) == pytest.approx(mean, abs=1e-4)
        assert float(row["cka_ci95"]) == pytest.approx(1.96 * std / EPISODES**0.5, abs=1e-4)
    assert values.mean(0).max() < 0.9999  # adaptation did change something


@torch.no_grad()
def query_outputs(learner: nn.Sequential, support_x: Tensor, query_x: Tensor, norm: str) -> list[Tensor]:
    """Inductive: beside the support set, normalised by it."""
    if norm == "transductive":
        return outputs(learner, query_x)
    backbone, head = learner
    support, query, maps = support_x, query_x, []
    for conv, batch_norm, *rest in backbone.blocks:
        support, query = conv(support), conv(query)
        mean, var = support.mean((0, 2, 3)), support.var((0, 2, 3), correction=0)
        affine = batch_norm.weight, batch_norm.bias
        support, query = (
            nn.Sequential(*rest)(F.batch_norm(x, mean, var, *affine, training=False, eps=batch_norm.eps))
            for x in (support, query)
        )
        maps.append(query)
    return [*maps, head(backbone.pool(query).flatten(1))]


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_frozen_layers_have_exactly_one(norm: str, tmp_path: Path) -> None:
    similarity = cka_of(run(tmp_path / "anil", make(ANIL, lambda: conv4(norm)), blobs()))
    assert [similarity[block] for block in BLOCKS] == [1] * 4
    assert similarity["head"] < 0.99
    similarity = cka_of(run(tmp_path / "boil", make(BOIL, lambda: conv4(norm)), blobs()))
    assert max(similarity.values()) < 1  # the head is frozen, but not what it gets to see


def test_without_steps_nothing_changes(tmp_path: Path) -> None:
    module = make(eval_inner_steps=0)
    rows = run(tmp_path, module, blobs())
    assert [(float(row["cka"]), float(row["cka_ci95"])) for row in rows] == [(1, 0)] * 5


def test_what_adapt_returns_does_not_matter(tmp_path: Path) -> None:
    """MAML++ with all switches off is MAML, but returns a trajectory and statistics."""
    off = dict(multi_step_until=0, per_step_norm=False, learned_rates=False)
    plain = run(tmp_path / "maml", make(), blobs())
    path = run(tmp_path / "path", make(MAMLPlusPlus, **off), blobs())
    assert path == plain


def test_task_mode_does_not_matter_and_steps_and_mode_are_left_as_they_were(tmp_path: Path) -> None:
    looped = run(tmp_path / "loop", make(task_mode="loop"), blobs())
    module = make(task_mode="vmap")
    assert run(tmp_path / "vmap", module, blobs()) == looped
    assert (module.inner_steps, module.eval_inner_steps) == (1, 2)
    assert not [layer for layer in module.modules() if layer._forward_hooks]


def test_regression_with_an_mlp(tmp_path: Path) -> None:
    module = make(MAML, MLP, n_way=1, inner_lr=0.1, loss_fn=F.mse_loss, metric=EpisodicMSE())
    similarity = cka_of(run(tmp_path, module, Sinusoid(test_episodes=EPISODES)))
    assert list(similarity) == ["layers.0", "layers.2", "head"]
    assert all(-1 <= value < 1 - 1e-6 for value in similarity.values()), similarity


def test_activations_in_bfloat16_are_compared_in_float64(tmp_path: Path) -> None:
    exact = cka_of(run(tmp_path / "32", make(), blobs()))
    rounded = cka_of(run(tmp_path / "bf16", make(), blobs(), precision="bf16-mixed"))
    assert rounded == pytest.approx(exact, abs=0.05)
    assert rounded != exact


def test_layers_of_other_backbones() -> None:
    class Deep(nn.Module):
        """A stem, a block and a layer with an activation, pooling, and a single layer."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3)
            block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
            self.blocks = nn.Sequential(nn.Dropout(), block, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.relu = nn.ReLU()
            self.norm = nn.LayerNorm(4)

    deep, head = Deep(), nn.Linear(4, 2)
    assert layers_of(deep, head) == {
        "stem": deep.stem,
        "blocks.1": deep.blocks[1],
        "blocks.2": deep.blocks[4],
        "norm": deep.norm,
        "head": head,
    }


def test_layers_of_our_backbones() -> None:
    head = nn.Linear(1, 1)
    for backbone, names in (
        (conv4(), BLOCKS),
        (ResNet12(channels=(1, 1, 1, 1)), BLOCKS),
        (WideResNet(depth=10, width=1), ["stem", *BLOCKS[:3], "out.0"]),
        (MLP(hidden=(3, 3, 3)), ["layers.0", "layers.2", "layers.4"]),
    ):
        assert list(layers_of(backbone, head)) == [*names, "head"]


def test_one_process_draws_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every collective operation fails while the report draws: nothing waits for other ranks."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("communicates")

    draw = LayerSimilarity.draw

    def alone(self: LayerSimilarity, *args: Any) -> Any:
        with monkeypatch.context() as patch:
            for name in ("all_gather", "all_gather_object", "all_reduce", "barrier", "broadcast"):
                patch.setattr(torch.distributed, name, refuse)
            for name in ("barrier", "broadcast", "reduce", "all_gather", "reduce_boolean_decision"):
                patch.setattr(pl.strategies.SingleDeviceStrategy, name, refuse)
            return draw(self, *args)

    monkeypatch.setattr(LayerSimilarity, "draw", alone)
    assert run(tmp_path, make(), blobs())


LAYERS = ["blocks.0", "blocks.1", "head"]


def test_a_bar_with_interval_and_value_for_each_layer() -> None:
    mean, ci95 = torch.tensor([1.0, 0.8, 0.3]), torch.tensor([0.0, 0.05, 0.1])
    figure = layer_similarity(LAYERS, mean, ci95, episodes=50, examples=75, title="MAML on Blobs")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "MAML on Blobs\nmean and 95 % interval over 50 episodes"
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(mean.tolist())
    ends = [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()]
    assert ends == [pytest.approx(end) for end in ([1, 1], [0.75, 0.85], [0.2, 0.4])]
    assert [text.get_text() for text in axes.texts] == ["1.000", "0.800", "0.300"]
    assert axes.get_ylim() == (0, pytest.approx(1.1))
    assert "75 query examples" in axes.get_xlabel()


def test_undefined_and_negative_estimates_are_not_hidden() -> None:
    nan = torch.nan
    figure = layer_similarity(LAYERS, torch.tensor([nan, -0.1, 0.5]), torch.tensor([nan, 0.2, nan]), 1, 5)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["-0.100", "0.500"]
    assert axes.get_ylim()[0] == pytest.approx(-0.3)


class Rows(nn.Module):
    """Of an image, read by a recurrent layer, whose output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.out = nn.LSTM(SIZE, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.reader(x.flatten(1, 2))[0][:, -1])


def test_a_wrapped_network_has_its_own_layers(tmp_path: Path) -> None:
    rows = run(tmp_path, MAML(Rows(), n_way=3, inner_lr=0.5), blobs(n_query=4))
    assert [row["layer"] for row in rows] == ["reader", "out", "head"]
