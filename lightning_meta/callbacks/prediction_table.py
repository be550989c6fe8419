"""What `predict` leaves behind."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_meta.callbacks.tables import write_csv
from lightning_meta.ranks import gather


class PredictionTable(pl.Callback):
    """Write `<log_dir>/predictions.csv` after `predict`: episode, query (its place in the episode), target, prediction.

    A prediction is the class with the largest logit, the regression value, or the mean of a predicted distribution.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loader: Any = trainer.predict_dataloaders  # one EpisodeLoader
        targets = batch.query.y
        classification = not torch.is_floating_point(targets)
        predictions = outputs.argmax(-1) if classification else outputs
        if predictions.ndim > targets.ndim:  # means and standard deviations
            predictions = predictions[..., 0]
        for episode, target, prediction in zip(loader.ids_of_batch(batch_idx), targets, predictions, strict=True):
            pairs = zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True)
            self.rows += [
                {"episode": episode, "query": query, "target": y, "prediction": p} for query, (y, p) in enumerate(pairs)
            ]

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows = sorted((row for rows in gather(self.rows) for row in rows), key=lambda row: row["episode"])
        self.rows = []
        log_dir = trainer.log_dir  # communicates: every rank must ask
        if log_dir is not None and trainer.is_global_zero:
            path = Path(log_dir) / "predictions.csv"
            write_csv(path, rows)
            print(f"Predictions of {len({row['episode'] for row in rows})} episodes: {path}")
