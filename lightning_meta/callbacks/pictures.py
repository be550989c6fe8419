"""The base of callbacks that draw."""

from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger

from lightning_meta.callbacks.replay import Replay
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.modules import EpisodicModule


class Pictures(pl.Callback):
    """Draw frozen test episodes after a test. A subclass writes `draw`, which saves any number of figures.

    Pictures are written to `<log_dir>/pictures/<name>.png` and sent to W&B where it is among the loggers. Rank zero
    draws alone. A dry run (`fast_dev_run`) has no log directory and draws nothing.

    Attributes:
        paths: of the pictures of the last test.
    """

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def draw(self, replay: Replay, log_dir: Path) -> None:
        """Look at episodes through `replay` and `save` figures; do nothing where they would not make sense."""
        raise NotImplementedError

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.paths = []
        log_dir = trainer.log_dir  # communicates: every rank must ask
        datamodule = getattr(trainer, "datamodule", None)
        if log_dir is None or not trainer.is_global_zero:
            return
        if isinstance(pl_module, EpisodicModule) and isinstance(datamodule, EpisodicDataModule):
            self.draw(Replay(trainer, pl_module, datamodule), Path(log_dir))

    def save(self, figure: Figure, name: str, replay: Replay, log_dir: Path) -> None:
        self.write(figure, name, replay.trainer, log_dir)

    def write(self, figure: Figure, name: str, trainer: pl.Trainer, log_dir: Path) -> None:
        path = log_dir / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        self.paths.append(path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key=f"test/{name}", images=[str(path)])
