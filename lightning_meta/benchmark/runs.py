"""Runs as the benchmarks take them: found by what they are called, and tested without leaving anything behind."""

from pathlib import Path

import pytorch_lightning as pl

from lightning_meta import checkpoints
from lightning_meta.cli.predict import trained_run
from lightning_meta.datamodules import TaskDataModule
from lightning_meta.modules import MetaModule


def found_run(place: Path) -> tuple[Path, Path | None]:
    """The folder of a run, and the checkpoint where one was named; an experiment's name is that of its latest run."""
    if place.is_file():
        return checkpoints.run_of(place) or place.parent, place
    return trained_run(place), None


def label(folder: Path) -> str:
    """`protonet_glyphs_5w1s` of `runs/protonet_glyphs_5w1s/version_0`"""
    return folder.parent.name if folder.name.startswith("version_") else folder.name


def tested(module: MetaModule, data: TaskDataModule, folder: Path, callback: pl.Callback) -> dict[str, float]:
    """What a test logs; `callback` watches it, and may write to `folder`."""
    trainer = pl.Trainer(
        devices=1, logger=False, inference_mode=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[callback],
    )  # fmt: skip
    trainer.test(module, datamodule=data, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}
