"""Every test episode by itself: the numbers behind the mean, for paired comparisons of methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from lightning_meta.callbacks.tables import write_csv
from lightning_meta.ranks import gather


class EpisodeTable(pl.Callback):
    """Write `<log_dir>/test_episodes.csv`: episode, the metric and the loss, a row for each test episode, in order.

    The test episodes are frozen, so the rows of two runs with the same data and seed can be compared one by one.

    Attributes:
        path: of the table of the last test; None before one and in a dry run.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.batches: list[tuple[Sequence[int], dict[str, Tensor]]] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.path, self.batches = None, []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loader: Any = trainer.test_dataloaders  # one EpisodeLoader
        values = {name: value for name, value in outputs.items() if name != "preds"}
        self.batches.append((loader.ids_of_batch(batch_idx), values))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mine = [row for ids, values in self.batches for row in _rows(ids, values)]
        # The ranks share the episodes out without repetition, so their rows only need sorting.
        rows = sorted((row for rows in gather(mine) for row in rows), key=lambda row: row["episode"])
        log_dir = trainer.log_dir  # communicates: every rank must ask
        if log_dir is not None and trainer.is_global_zero:
            self.path = Path(log_dir) / "test_episodes.csv"
            write_csv(self.path, rows)


def _rows(ids: Sequence[int], values: dict[str, Tensor]) -> list[dict[str, float]]:
    names = sorted(values, key=lambda name: name == "loss")  # the metric before the loss
    columns = [values[name].tolist() for name in names]
    return [dict(zip(("episode", *names), row, strict=True)) for row in zip(ids, *columns, strict=True)]
