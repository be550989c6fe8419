"""The dashboard, without a server: it shows what a run really logs, and averages seeds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_meta import cli
from lightning_meta.cli.dashboard import main
from lightning_meta.errors import ConfigError
from tests import wandb_file
from tests.cli.test_trainer import tiny_config
from tests.modules.test_wandb import forget_settings

pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
KEY = re.compile(r"\b(?:train|val|test|adaptation|trainer)/\w+")


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("dashboard") / "sent.json"
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)  # no account is needed
        main(["--entity", "me", "--project", "mine", "--dry-run", str(file)])
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All that a run of MAML with the callbacks of every run has logged."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)
        patch.chdir(folder)
        config = tiny_config({}).replace(
            "pytorch_lightning.loggers.CSVLogger", "lightning_meta.loggers.OwnFolderCSVLogger"
        )
        wandb = "    - class_path: lightning_meta.loggers.OfflineFirstWandbLogger\n      init_args: {save_dir: runs}\n"
        Path("tiny.yaml").write_text(config.replace("  callbacks:", f"{wandb}  callbacks:"))
        patch.setattr("sys.argv", ["lightning_meta"])
        cli.main(["fit", "--config", "tiny.yaml"]).trainer.loggers[1].experiment.finish()
        (file,) = folder.glob("runs/wandb/offline-run-*/*.wandb")
        run = wandb_file.read(file)
    nested = {key.split(".")[0] for row in run.history for key in row}
    return nested | {key.split(".")[0] for key in run.summary}


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_what_it_shows_is_logged(part: str, sent: dict[str, Any], logged: set[str]) -> None:
    shown = set(KEY.findall(json.dumps(sent[part])))
    assert len(shown) > 12
    assert {"test/acc", "val/acc", "adaptation/acc", "test/episodes", "test/ece", "train/episodes_per_s"} <= shown
    assert shown - logged == set()


def panels(value: Any, kind: str) -> list[dict[str, Any]]:
    """The settings of all panels of a kind, wherever they are."""
    if isinstance(value, dict):
        found = [value["config"]] if value.get("viewType") == kind else []
        return found + [one for item in value.values() for one in panels(item, kind)]
    return [one for item in value for one in panels(item, kind)] if isinstance(value, list) else []


@pytest.mark.parametrize("part", ["workspace", "report"])
@pytest.mark.parametrize("kind", ["Run History Line Plot", "Bar Chart"])
def test_seeds_are_averaged(part: str, kind: str, sent: dict[str, Any]) -> None:
    found = panels(sent[part], kind)
    assert len(found) >= 3
    assert {(one["aggregate"], one["groupBy"], one["groupAgg"], one["groupArea"]) for one in found} == {
        (True, "group", "mean", "stderr")
    }


def test_runs_are_grouped_and_the_interval_stands_beside_the_score(sent: dict[str, Any]) -> None:
    text = json.dumps(sent["workspace"])
    assert '"grouping": [{"section": "run", "name": "group"}]' in text
    assert '"summary:test/acc_ci95": true' in text
    assert '"grouping": [{"section": "run", "name": "group"}]' in json.dumps(sent["report"])


def test_another_metric(tmp_path: Path) -> None:
    main(["--entity", "me", "--metric", "mse", "--dry-run", str(tmp_path / "sent.json")])
    shown = set(KEY.findall((tmp_path / "sent.json").read_text()))
    assert {"test/mse", "val/mse_ci95", "adaptation/mse"} <= shown
    assert not {"test/acc", "test/ece", "test/calibration"} & shown


def test_without_an_account_the_other_way_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_settings(monkeypatch)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"API key.*--trainer\.logger trackio"):
        main(["--entity", "me"])
