"""How far is the meta-gradient under bf16-mixed from that in fp32, and is it faster here? A table in Markdown.

python -m lightning_meta benchmark precision [NAME ...]

There is a line for each algorithm. Each is trained a few steps in fp32 on Glyphs (or on what the `# On:` line of its
config names). At the first and at the last of them both gradients are taken at the same weights, on the same meta-batch
and with the same noise.
Tasks are looped over: under vmap, autocast leaves convolutions in fp32 on a CPU. The last column is the time of the
gradient in fp32 by that in bf16-mixed, on this machine: above 1, bf16-mixed pays here. On a CPU it needs instructions
for bfloat16 (AMX or AVX-512 BF16), without which it is several times slower.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.nn import functional as F

from lightning_meta import cli
from lightning_meta.cli.names import found
from lightning_meta.core import Episode
from lightning_meta.modules import EpisodicModule

MODELS = Path("configs/model")
EXPERIMENT = "configs/experiment/initialize/maml_glyphs_5w1s.yaml"
STEPS = (0, 20)
TURNS = 5
HEADER = (
    "| algorithm | cosine at step 0 | cosine at step 20 | ratio of lengths at step 20 | times as fast |\n"
    "|---|---|---|---|---|"
)
# No files, no evaluation: only the training steps.
OPTIONS = (
    f"--trainer.max_steps {STEPS[-1] + 1} --trainer.limit_val_batches 0 --trainer.logger false "
    "--trainer.enable_checkpointing false --trainer.enable_progress_bar false --trainer.enable_model_summary false "
    "--test_after_fit false --data.meta_batch_size 8 --model.task_mode loop "
    "--trainer.callbacks lightning_meta.benchmark.precision.PrecisionGap"
).split()


class PrecisionGap(pl.Callback):
    """Compare the meta-gradients in fp32 and bf16-mixed before the outer steps `STEPS`.

    Attributes:
        rows: for each of these steps, the cosine between them and the ratio of their lengths.
        speed: the time of that in fp32 by that of the other at the last of them, the median of `TURNS` pairs.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        self.speed = float("nan")

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, EpisodicModule)
        if trainer.global_step in STEPS:
            exact, rounded = (meta_gradient(module, batch, precision) for precision in ("32-true", "bf16-mixed"))
            self.rows.append(
                (F.cosine_similarity(exact, rounded, dim=0).item(), (rounded.norm() / exact.norm()).item())
            )
        if trainer.global_step == STEPS[-1]:
            self.speed = median(
                seconds(module, batch, "32-true") / seconds(module, batch, "bf16-mixed") for _ in range(TURNS)
            )


def seconds(module: EpisodicModule, tasks: Episode, precision: str) -> float:
    """The time that a gradient takes."""
    start = perf_counter()
    meta_gradient(module, tasks, precision).sum().item()  # waits for a GPU
    return perf_counter() - start


def meta_gradient(module: EpisodicModule, tasks: Episode, precision: str) -> Tensor:
    """The gradient of the mean query loss, all parameters in one float64 vector; with the noise of this step."""
    module.seed_noise(module.global_step)
    mixed = MixedPrecision("bf16-mixed", module.device.type)
    with mixed.forward_context() if precision == "bf16-mixed" else torch.enable_grad():
        loss = module.play(tasks).loss.mean()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def row(model: Path) -> str:
    """One line of the table."""
    experiment = re.search(r"^# On: +(\S+)$", model.read_text(), re.MULTILINE)
    config = experiment[1] if experiment else EXPERIMENT
    try:
        trainer = cli.main(["fit", "--config", config, "--model", str(model), *OPTIONS]).trainer
    except SystemExit as ended:  # nothing to train, or a library that is not installed
        return f"| {model.stem} | {ended} | - | - | - |"
    gap = next(callback for callback in trainer.callbacks if isinstance(callback, PrecisionGap))
    (first, _), (last, ratio) = gap.rows
    return f"| {model.stem} | {first:.4f} | {last:.4f} | {ratio:.3f} | {gap.speed:.2f} |"


def main(arguments: Sequence[str]) -> None:
    """Print the table, for the algorithms named or for all."""
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark precision", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an algorithm, or a file of its settings (all)")
    given = parser.parse_args(arguments)
    print(HEADER)
    for path in [found("model", name) for name in given.names] or sorted(MODELS.glob("*.yaml")):
        print(row(path), flush=True)
