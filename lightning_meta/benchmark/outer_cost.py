"""What does an outer update of a bilevel problem cost? A table in Markdown: its time against that of plain training.

python -m lightning_meta benchmark outer_cost NAME [...]

An outer update is all that an algorithm does with a batch: its inner steps, the hypergradient, the step of the outer
variables, and the inner steps for good. Plain training takes the same number of steps of the same networks on the same
batches, by their cross-entropy. The two take turns; the fastest of some turns counts, since other work on a machine can
only slow a turn down.
"""

import argparse
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta import cli
from lightning_meta.cli.names import found
from lightning_meta.core import Batch, Params, Progress, descend
from lightning_meta.datamodules.bilevel.trials import Trial
from lightning_meta.errors import ConfigError
from lightning_meta.modules import BilevelModule

TURNS = 5
HEADER = "| experiment | algorithm | trainings x steps | ms per update | plain, ms | ratio |\n|---|---|---|---|---|---|"
OPTIONS = [
    "--trainer.max_steps=1",
    "--trainer.limit_val_batches=0",
    "--test_after_fit=false",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.callbacks=lightning_meta.benchmark.outer_cost.OuterCost",
]


class OuterCost(pl.Callback):
    """Times updates with the first batch of training; in `ms`, of the algorithm and of plain training."""

    def __init__(self) -> None:
        self.ms: tuple[float, float] | None = None
        self.size = ""

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Trial, batch_idx: int
    ) -> None:
        if not isinstance(module, BilevelModule):
            raise ConfigError(f"{type(module).__name__} is no bilevel problem; give experiments of docs/bilevel.md.")
        self.size = f"{len(batch.key)} x {batch.support.x.shape[1]}"
        whole, alone = [], []
        for _ in range(TURNS):
            whole.append(seconds(lambda: update(trainer, module, batch), module))
            alone.append(seconds(lambda: plain(module, batch), module))
        self.ms = 1000 * min(whole), 1000 * min(alone)


def seconds(step: Callable[[], None], module: BilevelModule) -> float:
    start = perf_counter()
    step()
    if module.device.type != "cpu":
        torch.accelerator.synchronize()
    return perf_counter() - start


def update(trainer: pl.Trainer, module: BilevelModule, batch: Trial) -> None:
    """An outer update, as the Trainer takes it."""
    loss = module.measure(batch)[0]["loss"].mean()
    if loss.requires_grad:
        loss.backward()
    trainer.optimizers[0].step()
    trainer.optimizers[0].zero_grad()
    module.settle()


def plain(module: BilevelModule, batch: Trial) -> None:
    """As many steps of ordinary training, from the beginning."""

    def steps(progress: Progress, support: Batch) -> Params:
        def of(x: torch.Tensor, y: torch.Tensor) -> Callable[[Params], torch.Tensor]:
            return lambda weights: F.cross_entropy(module.logits(weights, x), y.clamp_min(0))

        losses = [of(x, y) for x, y in zip(*support, strict=True)]
        return descend(losses, progress, module.inner_optimizer, first_order=True).params

    with torch.no_grad():
        module._map(steps, batch, module.begin(batch), batch.support)


def main(arguments: Sequence[str]) -> None:
    """Print the table for the experiments named."""
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark outer_cost", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="of an experiment, or its file: meta_weight_net_noisy_digits, say"
    )
    rows = [HEADER]
    for path in [found("experiment", name) for name in parser.parse_args(arguments).names]:
        with TemporaryDirectory() as folder:  # of the run's own results, which are not asked for
            run = cli.main(["fit", "--config", str(path), *OPTIONS, f"--trainer.default_root_dir={folder}"])
        (cost,) = [callback for callback in run.trainer.callbacks if isinstance(callback, OuterCost)]
        assert cost.ms is not None
        whole, alone = cost.ms
        times = f"{whole:.1f} | {alone:.1f} | {whole / alone:.1f}"
        rows.append(f"| `{path.stem}` | {type(run.model).__name__} | {cost.size} | {times} |")
    print("\n".join(rows))
