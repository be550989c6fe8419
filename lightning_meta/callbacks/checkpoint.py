"""Best and last checkpoints."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_meta.modules import EpisodicModule


class EpisodicCheckpoint(ModelCheckpoint):
    """Keep the checkpoint that is best on meta-validation, and the last one.

    Monitors `val/<metric>` of the module in the direction of that metric, so the same setting serves accuracy and
    squared error. Files: `<run>/checkpoints/best-step=....ckpt` and `last.ckpt`.

    Args:
        monitor: a logged name. None: the module's metric.
        **kwargs: of `ModelCheckpoint`.
    """

    def __init__(self, monitor: str | None = None, **kwargs: Any) -> None:
        settings: dict[str, Any] = {"filename": "best-{step}", "save_last": True, "monitor": monitor} | kwargs
        super().__init__(**settings)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(pl_module, EpisodicModule) and self.monitor in (None, f"val/{pl_module.metric.name}"):
            self.monitor = f"val/{pl_module.metric.name}"
            self.mode = pl_module.metric.mode
            self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning forgets this here, with save_last
            super().on_train_end(trainer, pl_module)
