"""Every test episode by itself: the numbers behind the mean, for paired comparisons of methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from lightning_meta.callbacks.episode_digest import list_digest, played_inputs, task_digests
from lightning_meta.core import Batch, Episode
from lightning_meta.ranks import gather
from lightning_meta.reports.tables import write_csv


class EpisodeTable(pl.Callback):
    """Write `<log_dir>/test_episodes.csv`: episode, the metric and the loss, a row for each test episode, in order.

    The test episodes are frozen, so the rows of two runs with the same data and seed can be compared one by one.

    W&B gets the same as the table `test/episodes`. Where images are classified, its first rows (of rank zero's share)
    also have the support and the query images, one row of images for each class, and the predictions in that order.

    Args:
        pictured: how many rows have images.

    Attributes:
        path: of the table of the last test; None before one and in a dry run.
        digest: of the episodes that it played, the same for any number of processes and any size of meta-batches.
    """

    def __init__(self, pictured: int = 20) -> None:
        self.pictured = pictured
        self.path: Path | None = None
        self.digest: str | None = None
        self.digests: dict[int, bytes] = {}
        self.batches: list[tuple[Sequence[int], dict[str, Tensor]]] = []
        self.pictures: dict[int, tuple[Image.Image, Image.Image, str]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.path, self.batches, self.pictures = None, [], {}
        self.digest, self.digests = None, {}

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
        values = {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.ndim == 1}
        ids = loader.ids_of_batch(batch_idx)
        self.batches.append((ids, values))
        self.digests.update(zip(ids, task_digests(played_inputs(loader.dataset, ids, batch)), strict=True))
        images = isinstance(batch, Episode) and batch.query.x.ndim == 5
        classified = images and batch.query.y.ndim == 2 and not batch.query.y.is_floating_point()  # not masks, boxes
        if not (classified and trainer.is_global_zero and _wandb_loggers(trainer)):
            return
        for task, episode in enumerate(ids[: self.pictured - len(self.pictures)]):
            support, query = (Batch(part.x[task], part.y[task]) for part in (batch.support, batch.query))
            predictions = _by_class(query.y, outputs["preds"][task].argmax(-1))
            text = "\n".join(" ".join(map(str, row)) for row in predictions.tolist())
            self.pictures[episode] = (_picture(support), _picture(query), text)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mine = [row for ids, values in self.batches for row in _rows(ids, values)]
        # The ranks share the episodes out without repetition, so their rows only need sorting.
        rows = sorted((row for rows in gather(mine) for row in rows), key=lambda row: row["episode"])
        self.digest = list_digest({i: digest for digests in gather(self.digests) for i, digest in digests.items()})
        log_dir = trainer.log_dir  # communicates: every rank must ask
        if log_dir is not None and trainer.is_global_zero:
            self.path = Path(log_dir) / "test_episodes.csv"
            write_csv(self.path, rows)
            for logger in _wandb_loggers(trainer):
                self._log_table(logger, rows)

    def _log_table(self, logger: WandbLogger, rows: Sequence[dict[str, float]]) -> None:
        import wandb  # takes a second, and only some runs need it

        columns = [*rows[0]]
        cells: list[list[Any]] = [[*row.values()] for row in rows]
        if self.pictures:
            columns += ["support", "query", "predictions"]
            for line in cells:
                *images, text = self.pictures.get(int(line[0]), (None, None, None))
                line += [*(wandb.Image(image) if image else None for image in images), text]
        logger.log_table("test/episodes", columns, cells)


def _wandb_loggers(trainer: pl.Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _by_class(labels: Tensor, values: Tensor) -> Tensor:
    """Values of examples in a row for each class: `(examples, ...)` to `(classes, examples of a class, ...)`."""
    return values[labels.argsort(stable=True)].unflatten(0, (len(labels.unique()), -1))


def _picture(examples: Batch) -> Image.Image:
    """A row of images for each class; those of one channel as ink on paper, as in the gallery."""
    rows = _by_class(examples.y, examples.x.detach().float().cpu().clamp(0, 1))
    images = rows.flatten(0, 1)
    return to_pil_image(make_grid(1 - images if images.shape[1] == 1 else images, nrow=rows.shape[1]))


def _rows(ids: Sequence[int], values: dict[str, Tensor]) -> list[dict[str, float]]:
    names = sorted(values, key=lambda name: name == "loss")  # the metric before the loss
    columns = [values[name].tolist() for name in names]
    return [dict(zip(("episode", *names), row, strict=True)) for row in zip(ids, *columns, strict=True)]
