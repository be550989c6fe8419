from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_only

from lightning_meta.algorithms import ProtoNet
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import TaskDataModule
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.loggers import OwnFolderCSVLogger
from tests.conftest import Blobs, blobs, conv4


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when both looked for a free number before either took it."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    first, second = (OwnFolderCSVLogger(tmp_path, name="maml") for _ in range(2))
    assert first.version == 0
    looks = iter([[], [{"name": str(tmp_path / "maml" / "version_0")}]])
    monkeypatch.setattr(second._fs, "listdir", lambda folder: next(looks))
    assert second.version == 1
    assert {folder.name for folder in (tmp_path / "maml").iterdir()} == {"version_0", "version_1"}


def test_other_ranks_make_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert OwnFolderCSVLogger(tmp_path, name="maml").version == 0
    assert not any(tmp_path.iterdir())


class Opening(DummyLogger):
    """Counts how often its run is opened."""

    opened = 0

    @property
    def experiment(self) -> Any:
        self.opened += 1
        return super().experiment


class Missing(Blobs):
    def load_source(self, split: Split) -> ClassBank:
        raise DataError("my_images does not exist.")


@pytest.mark.parametrize("data", [blobs(n_way=99), Missing()], ids=["few classes", "no folder"])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_data_that_cannot_be_played_leave_no_run(data: TaskDataModule, stage: str, tmp_path: Path) -> None:
    logger = Opening()
    trainer = pl.Trainer(
        max_steps=1, inference_mode=False, accelerator="cpu", logger=logger, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises((ConfigError, DataError), match=r"n_way=99|my_images does not exist"):
        getattr(trainer, stage)(ProtoNet(conv4()), datamodule=data)
    assert logger.opened == 0
    trainer.fit(ProtoNet(conv4()), datamodule=blobs(steps_per_epoch=1, val_episodes=2))
    assert logger.opened > 0
