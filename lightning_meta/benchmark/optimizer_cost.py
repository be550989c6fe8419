"""What does a step of a learned optimizer cost? A table in Markdown: time per step, and its ratio to Adam's.

python -m lightning_meta benchmark optimizer_cost NAME [...]

A step is the gradient of one optimizee and the update of its weights. All optimizers take the steps of the same test
optimizees, in turns; the fastest of some turns counts, since other work on a machine can only slow a turn down.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_meta import cli
from lightning_meta.cli.names import found
from lightning_meta.datamodules.optimizees.optimizees import Segment
from lightning_meta.errors import ConfigError
from lightning_meta.modules import TruncatedModule
from lightning_meta.reports.learning_curves import BASELINES

TURNS = 5
HEADER = "| experiment | optimizer | ms per step | against Adam |\n|---|---|---|---|"
# Without training: what a rule has learned does not change its cost.
OPTIONS = [
    "--trainer.limit_test_batches=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks=lightning_meta.benchmark.optimizer_cost.OptimizerCost",
]


class OptimizerCost(pl.Callback):
    """Times each optimizer on the first batch of test optimizees; in `ms`, milliseconds per step and optimizee."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    def on_test_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Segment, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not isinstance(module, TruncatedModule):
            raise ConfigError(f"{type(module).__name__} learns no optimizer; give experiments of lstm_optimizer.")
        optimizers: dict[str, Any] = {name: make(1e-3) for name, make in BASELINES.items()}
        optimizers[type(module).__name__] = module.rule
        turns: dict[str, list[float]] = {name: [] for name in optimizers}
        for _ in range(TURNS):
            for name, optimizer in optimizers.items():
                start = perf_counter()
                losses_TS = module.optimize(batch, optimizer)
                if module.device.type != "cpu":
                    torch.accelerator.synchronize()
                turns[name].append(perf_counter() - start)
        steps = len(losses_TS) * (losses_TS.shape[1] - 1)
        self.ms = {name: 1000 * min(seconds) / steps for name, seconds in turns.items()}


def main(arguments: Sequence[str]) -> None:
    """Print the table for the experiments named."""
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark optimizer_cost", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="of an experiment, or its file: lstm_optimizer_quadratics, say"
    )
    rows = [HEADER]
    for path in [str(found("experiment", name)) for name in parser.parse_args(arguments).names]:
        with TemporaryDirectory() as folder:  # of the run's own results, which are not asked for
            trainer = cli.main(["test", "--config", path, *OPTIONS, f"--trainer.default_root_dir={folder}"]).trainer
        (cost,) = [callback for callback in trainer.callbacks if isinstance(callback, OptimizerCost)]
        adam = cost.ms["Adam"]
        rows += [f"| `{Path(path).stem}` | {name} | {ms:.3f} | {ms / adam:.1f} |" for name, ms in cost.ms.items()]
    print("\n".join(rows))
