"""Is a classifier as often right as it is sure?

Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599.
"""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EpisodicModule
from lightning_meta.viz import reliability_diagram


class Calibration(Pictures):
    """Expected calibration error over all queries of a test, logged as `test/ece`, and the picture `calibration`.

    The confidence of a prediction is the largest softmax probability; predictions are sorted by it into bins of equal
    width. The error is the mean gap between confidence and accuracy of a bin, weighted by the share of its examples.

    For classifiers: modules whose metric is accuracy. Their predictions are taken as logits, also the scores of
    methods that are not trained by a softmax (Relation Networks, Siamese networks): for these the error tells how far
    their scores are from being logits. Other modules are skipped without a word.

    Args:
        bins: how many.
    """

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        self.sums = torch.empty(0)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sums = torch.zeros(3, self.bins, dtype=torch.float64, device=pl_module.device)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if is_classifier(pl_module):
            self.sums += bin_sums(outputs["preds"], batch.query.y, self.bins)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_classifier(pl_module):
            self.sums = trainer.strategy.reduce(self.sums, reduce_op="sum")
            pl_module.log("test/ece", expected_calibration_error(self.sums))

    def draw(self, replay: Replay, log_dir: Path) -> None:
        if is_classifier(replay.module):
            error = expected_calibration_error(self.sums).item()
            count, confidence, right = self.sums.cpu()
            figure = reliability_diagram(count, confidence, right, error, replay.title)
            self.save(figure, "calibration", replay, log_dir)


def is_classifier(module: pl.LightningModule) -> bool:
    return isinstance(module, EpisodicModule) and isinstance(module.metric, EpisodicAccuracy)


def bin_sums(logits: Tensor, targets: Tensor, bins: int) -> Tensor:
    """For each bin the number of examples, the sum of their confidences and the number of right ones, `(3, bins)`.

    Args:
        logits: `(..., C)`; -inf for a class that does not exist.
        targets: classes `(...)`.
        bins: of equal width, of which the first begins above 0 and the last ends with 1.
    """
    confidence, predicted = logits.detach().double().softmax(-1).flatten(0, -2).max(-1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    values = torch.stack([torch.ones_like(confidence), confidence, (predicted == targets.flatten()).double()])
    return torch.zeros(3, bins, dtype=torch.float64, device=logits.device).index_add(1, place, values)


def expected_calibration_error(sums: Tensor) -> Tensor:
    """From the sums of `bin_sums`, which add up over batches and ranks."""
    count, confidence, right = sums
    return (confidence - right).abs().sum() / count.sum()
