"""A test of the Trainer that a report looks at."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger


def run_test(folder: Path, module: Any, data: Any, *callbacks: pl.Callback, **settings: Any) -> dict[str, float]:
    """Test a module with these callbacks in a folder; what was logged."""
    options = {"logger": CSVLogger(folder, name="", version="")} | settings
    trainer = pl.Trainer(
        accelerator="cpu", inference_mode=False, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    (logged,) = trainer.test(module, datamodule=data, verbose=False)
    return logged


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
