"""The errors of test streams, in a real, tiny test of the Trainer."""

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger

from lightning_meta.algorithms import LSTMLearner
from lightning_meta.callbacks import SequenceError
from lightning_meta.datamodules import Quadratics, Sinusoid
from lightning_meta.datamodules.base import EpisodicDataModule


def run(folder: Path, module: LSTMLearner, data: EpisodicDataModule) -> SequenceError:
    callback = SequenceError(episodes=6)
    trainer = pl.Trainer(
        accelerator="cpu", inference_mode=False, logger=CSVLogger(folder, name="", version=""), callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(module, datamodule=data, verbose=False)
    return callback


def test_errors_are_those_that_the_hooks_log(tmp_path: Path) -> None:
    module, data = LSTMLearner(hidden=8), Quadratics(k_shot=10, test_episodes=8)
    (picture,) = run(tmp_path, module, data).paths
    assert picture.name == "sequence_error.png" and picture.stat().st_size > 1000
    with (tmp_path / "sequence_error.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    logs = module.play(data.dataset("test").__getitems__(range(6))).logs
    for n in (1, 2, 5, 10):
        assert rows[n - 1]["examples_seen"] == str(n - 1)
        assert float(rows[n - 1]["LSTMLearner"]) == pytest.approx(logs[f"mse_{n}"].mean().item())
    plain, centred = (float(rows[0][name]) for name in ("least squares", "least squares, centred"))
    assert plain > 5 * centred  # before the first point: zero against the mean of all functions
    assert float(rows[9]["least squares"]) < 1e-4 * centred


def test_other_data_are_skipped(tmp_path: Path) -> None:
    assert not run(tmp_path, LSTMLearner(in_features=1, hidden=8), Sinusoid(test_episodes=4)).paths
