"""Pictures of bilevel problems: they show what was learned, and are drawn in a test of their algorithm alone."""

import csv
from pathlib import Path

import pytorch_lightning as pl
import torch

from lightning_meta.algorithms import KIP, FixedWeights, MetaWeightNet
from lightning_meta.modules import MetaModule
from lightning_meta.reports import ExampleWeights, LearnedImages
from lightning_meta.reports.base import Report
from tests.algorithms.bilevel_cases import held_out, network
from tests.conftest import SIZE


def run(module: MetaModule, report: Report, folder: Path) -> Path:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, inference_mode=False, enable_progress_bar=False, enable_model_summary=False,
        logger=pl.loggers.CSVLogger(folder), callbacks=[report], enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    data = held_out()
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


def test_others_have_neither(tmp_path: Path) -> None:
    for report in (ExampleWeights(), LearnedImages()):
        run(FixedWeights(network(), 4), report, tmp_path)
        assert report.paths == []
