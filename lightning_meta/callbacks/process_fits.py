"""How close do predictions come to what there is to know about a function?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import Keys, episode_keys
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.functions.gaussian_process import GaussianProcessSource
from lightning_meta.metrics import EpisodicLogLikelihood, EpisodicMean
from lightning_meta.modules import EpisodicModule
from lightning_meta.viz import process_fits

GRID_POINTS = 200
BOUNDS = ("gp_log_likelihood", "gp_averaged_log_likelihood", "gp_averaged_normal_log_likelihood")


class ProcessFits(Pictures):
    """Predictions for draws of Gaussian processes, against what is to be known of them.

    Logs, each with its `_ci95` and on the same test episodes as `test/log_likelihood`:

    - `test/gp_log_likelihood`: of the posterior under the kernel that a function was drawn from. Out of reach, as no
      algorithm is told the kernel.
    - `test/gp_averaged_log_likelihood`: of the average over kernels, the most that a support set and the knowledge of
      how functions are drawn allow.
    - `test/gp_averaged_normal_log_likelihood`: of normal distributions with its means and standard deviations, the most
      that predictions of this form allow: the bound of neural processes.

    Picture `process_fits`: means and bands of predictions and of the posterior under the true kernel for some test
    episodes.

    For algorithms that predict means and standard deviations; anything else is skipped without a word.

    Args:
        tasks: how many test episodes are drawn.
    """

    def __init__(self, tasks: int = 4) -> None:
        super().__init__()
        self.tasks = tasks
        self.scores: dict[str, EpisodicMean] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.scores = {name: EpisodicMean().to(pl_module.device) for name in BOUNDS}

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
            for name, values_T in bounds(data, loader.ids_of_batch(batch_idx), batch.query.y.cpu()).items():
                self.scores[name].update(values_T.to(pl_module.device))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if applies(pl_module, getattr(trainer, "datamodule", None)):
            for name, score in self.scores.items():
                mean, ci95 = score.compute()  # summed over ranks by torchmetrics
                pl_module.log(f"test/{name}", mean)
                pl_module.log(f"test/{name}_ci95", ci95)

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


def bounds(data: EpisodicDataModule, ids: Sequence[int], y_TQ1: Tensor) -> dict[str, Tensor]:
    """Log-likelihoods `(T,)` of the query values of test episodes, by name."""
    averaged = source(data).averaged_posterior(keys_of(data, ids), data.shapes["test"])
    normal = torch.from_numpy(np.stack([averaged.mean, averaged.std], axis=-1))
    known, normal = (
        EpisodicLogLikelihood.per_episode(fit.unsqueeze(2), y_TQ1) for fit in (posterior(data, ids), normal)
    )
    return dict(zip(BOUNDS, (known, torch.from_numpy(averaged.log_density).mean(1), normal), strict=True))


def posterior(data: EpisodicDataModule, ids: Sequence[int], x: np.ndarray | None = None) -> Tensor:
    """Mean and standard deviation, `(T, M, 2)`, at the query points of test episodes or at `x`."""
    return torch.from_numpy(np.stack(source(data).posterior(keys_of(data, ids), data.shapes["test"], x), axis=-1))


def source(data: EpisodicDataModule) -> GaussianProcessSource:
    return cast(GaussianProcessSource, data.sources["test"])


def keys_of(data: EpisodicDataModule, ids: Sequence[int]) -> Keys:
    return episode_keys(data.seed, STREAM["test"], ids)
