"""How close do predictions come to what there is to know about a function?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.gaussian_process import GaussianProcessSource
from lightning_meta.datamodules.sampling import episode_keys
from lightning_meta.metrics import EpisodicLogLikelihood, EpisodicMean
from lightning_meta.modules import EpisodicModule
from lightning_meta.viz import process_fits

GRID_POINTS = 200


class ProcessFits(Pictures):
    """Predictions for draws of Gaussian processes, against the true posterior.

    Logs `test/gp_log_likelihood` and its `_ci95`: what the true posterior scores on the same test episodes, an upper
    bound for any `test/log_likelihood`. Picture `process_fits`: means and bands of both for some test episodes.

    For algorithms that predict means and standard deviations; anything else is skipped without a word.

    Args:
        tasks: how many test episodes are drawn.
    """

    def __init__(self, tasks: int = 4) -> None:
        super().__init__()
        self.tasks = tasks
        self.score = EpisodicMean()

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.score = EpisodicMean().to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if applies(pl_module, data):
            loader: Any = trainer.test_dataloaders  # one EpisodeLoader
            truth = posterior(data, loader.ids_of_batch(batch_idx)).unsqueeze(2)
            self.score.update(EpisodicLogLikelihood.per_episode(truth, batch.query.y.cpu()).to(pl_module.device))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if applies(pl_module, getattr(trainer, "datamodule", None)):
            mean, ci95 = self.score.compute()  # summed over ranks by torchmetrics
            pl_module.log("test/gp_log_likelihood", mean.float())
            pl_module.log("test/gp_log_likelihood_ci95", ci95.float())

    def draw(self, replay: Replay, log_dir: Path) -> None:
        module, data = replay.module, replay.datamodule
        if not applies(module, data):
            return
        ids = range(min(self.tasks, data.test_episodes))
        support = replay.episodes(ids).support
        x = torch.linspace(*GaussianProcessSource.x_range, GRID_POINTS, dtype=torch.float64)
        x_TM1 = x.expand(len(ids), -1)[..., None].to(support.x)
        fits = replay.play(Episode(support, Batch(x_TM1, torch.zeros_like(x_TM1)))).preds.squeeze(2)
        title = f"{type(module).__name__} on {data.name}, {data.shapes['test'].k_shot}-shot"
        support, fits = tree_map(lambda leaf: leaf.float().cpu(), (support, fits))
        figure = process_fits(x, posterior(data, ids, x.numpy()), support, fits, title)
        self.save(figure, "process_fits", replay, log_dir)


def applies(module: Any, data: Any) -> bool:
    return (
        isinstance(module, EpisodicModule)
        and isinstance(module.metric, EpisodicLogLikelihood)
        and isinstance(data, EpisodicDataModule)
        and isinstance(data.sources["test"], GaussianProcessSource)
    )


def posterior(data: EpisodicDataModule, ids: Sequence[int], x: np.ndarray | None = None) -> Tensor:
    """Mean and standard deviation, `(T, M, 2)`, at the query points of test episodes or at `x`."""
    source: Any = data.sources["test"]
    keys = episode_keys(data.seed, STREAM["test"], ids)
    return torch.from_numpy(np.stack(source.posterior(keys, data.shapes["test"], x), axis=-1))
