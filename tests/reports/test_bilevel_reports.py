"""Pictures of bilevel problems: they show what was learned, and are drawn in a test of their algorithm alone."""

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_meta.algorithms import (
    DADA,
    DARTS,
    KIP,
    PBA,
    AutoAugment,
    FixedWeights,
    Hyperparameters,
    MetaPseudoLabels,
    MetaWeightNet,
)
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch
from lightning_meta.core.augment import LARGEST
from lightning_meta.datamodules import TaskDataModule, TwoMoons
from lightning_meta.modules import MetaModule
from lightning_meta.reports import (
    ArchitecturePath,
    DecayMap,
    DecisionBoundary,
    ExampleWeights,
    LearnedAugmentation,
    LearnedImages,
)
from lightning_meta.reports.architecture_path import architecture_path
from lightning_meta.reports.base import Report
from lightning_meta.reports.decay_map import first_decays
from lightning_meta.reports.decision_boundary import decision_boundary
from tests.algorithms.bilevel_cases import cell, held_out, network
from tests.conftest import SIZE


def run(module: MetaModule, report: Report, folder: Path, data: TaskDataModule | None = None, **settings: Any) -> Path:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, inference_mode=False, enable_progress_bar=False, enable_model_summary=False,
        logger=pl.loggers.CSVLogger(folder), callbacks=[report], enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    data = data or held_out(**settings)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return Path(trainer.log_dir)


def test_example_weights_are_those_of_the_weigher(tmp_path: Path) -> None:
    module, report = MetaWeightNet(network(), 4, hidden=5), ExampleWeights()
    log_dir = run(module, report, tmp_path)
    assert [path.name for path in report.paths] == ["example_weights.png"]
    with (log_dir / "example_weights.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and sum(row["right"] == "0" for row in rows) == 5
    losses = torch.tensor([float(row["loss"]) for row in rows])
    weights = torch.tensor([float(row["weight"]) for row in rows])
    torch.testing.assert_close(weights, module.weights_of(losses).detach(), rtol=1e-4, atol=1e-5)


def test_learned_images_are_drawn_beside_real_ones(tmp_path: Path) -> None:
    report = LearnedImages(images=3)
    run(KIP(in_shape=(1, SIZE, SIZE), n_classes=4), report, tmp_path)
    assert [path.name for path in report.paths] == ["learned_images.png"]


def test_the_path_of_a_search_is_drawn_and_written(tmp_path: Path) -> None:
    module, report = DARTS(cell(), 4, optimizer=lambda params: torch.optim.Adam(params, lr=0.1)), ArchitecturePath()
    log_dir = run(module, report, tmp_path)
    assert [path.name for path in report.paths] == ["architecture_path.png"]
    with (log_dir / "architecture_path.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["update"], row["edge"]) for row in rows] == [
        (str(update), edge) for update in range(1, 5) for edge in ("0-1", "0-2", "1-2")
    ]
    last = [[float(row[name]) for name in module.cell.operations] for row in rows[-3:]]
    torch.testing.assert_close(torch.tensor(last), module.alphas_EO.detach().softmax(1))
    assert rows[0] | {"update": "4"} != rows[-3]
    log_dir = run(DARTS(cell(), 4), ArchitecturePath(every=2), tmp_path / "every second")
    with (log_dir / "architecture_path.csv").open(newline="") as file:
        assert [row["update"] for row in csv.DictReader(file)] == ["2"] * 3 + ["4"] * 3
    shares = torch.tensor([0.25, 0.75]).expand(4, 1, 2)
    ticks = architecture_path(shares, ["0-1"], ("conv", "pool"), "pool", "").axes[0].get_xticks()
    assert [*ticks] == [0, 1, 2, 3, 4], "updates are whole"


def test_the_boundary_is_where_the_classes_are_as_likely(tmp_path: Path) -> None:
    """Of a plane whose probability is known: the line of one half, through points on both sides."""
    axis = torch.linspace(0, 1, 11)
    plane = axis.expand(11, 11)  # as likely as it is far to the right
    labelled = Batch(torch.tensor([[0.1, 0.2], [0.9, 0.3]]), torch.tensor([0, 1]))
    figure = decision_boundary(axis, axis, plane, torch.rand(4, 2), labelled, "MetaPseudoLabels on TwoMoons")
    lines = figure.axes[0].collections[1].get_paths()
    assert torch.tensor(lines[0].vertices)[:, 0].tolist() == [0.5] * len(lines[0].vertices)
    report, data = DecisionBoundary(resolution=20), TwoMoons(val_per_class=5, test_per_class=5, support_per_class=5)
    run(MetaPseudoLabels(MLP(2, [8]), 2), report, tmp_path, data)
    assert [path.name for path in report.paths] == ["decision_boundary.png"]


def test_others_have_none_of_them(tmp_path: Path) -> None:
    drawn = ExampleWeights, LearnedImages, ArchitecturePath, DecisionBoundary, DecayMap, LearnedAugmentation
    for report in (cls() for cls in drawn):
        run(FixedWeights(network(), 4), report, tmp_path)
        assert report.paths == []


@pytest.mark.parametrize("per", ["input", "weight"])
def test_the_decay_of_a_pixel_is_the_mean_over_its_weights(per: Any, tmp_path: Path) -> None:
    module, report = Hyperparameters(network(), 4, per=per), DecayMap()
    run(module, report, tmp_path)
    assert [path.name for path in report.paths] == ["decay_map.png"]
    decays = first_decays(module)
    assert decays.shape == (1 if per == "input" else 8, SIZE * SIZE)
    torch.testing.assert_close(decays.exp().flatten(), module.decay_of("backbone.layers.0.weight").detach().flatten())


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (DADA(network(), 4), {}),
        (PBA(network(), 4), {"meta_batch_size": 4}),
        (AutoAugment(network(), 4), dict(meta_batch_size=2, unroll_steps=1, evaluate="retrained")),
    ],
    ids=["dada", "pba", "autoaugment"],
)
def test_learned_magnitudes_stand_beside_the_truth(module: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    report = LearnedAugmentation(images=4)
    log_dir = run(module, report, tmp_path, moved={"rotate": 30.0}, **settings)
    assert [path.name for path in report.paths] == ["augmentation.png", "augmented_images.png"]
    with (log_dir / "augmentation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["operation"] for row in rows] == [*LARGEST]
    assert [float(row["true"]) for row in rows] == [30.0, *[0.0] * 7]
    learned = torch.tensor([float(row["learned"]) for row in rows])
    torch.testing.assert_close(learned, module.magnitudes.detach(), rtol=1e-4, atol=1e-5)
