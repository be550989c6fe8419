from pathlib import Path

import pytest
from pytorch_lightning.utilities import rank_zero_only

from lightning_meta.loggers import OwnFolderCSVLogger


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
