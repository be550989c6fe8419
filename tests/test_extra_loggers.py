"""Loggers that need a package of their own: each has what the run has measured, and one line says what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_meta import extras
from lightning_meta.cli import main
from tests.cli.test_trainer import ROOT, fails, tiny  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CONFIGS = ROOT / "configs/logger"


def fit(tiny: Path, name: str) -> dict[str, Any]:  # noqa: F811
    """Train with a logger; what the run's `result.json` says."""
    main(["fit", "--config", str(tiny), "--trainer.logger", str(CONFIGS / f"{name}.yaml"), "--seed_everything", "3"])
    return json.loads(Path("runs/tiny/version_0/result.json").read_text())


def test_tensorboard_has_the_curves(tiny: Path) -> None:  # noqa: F811
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(tiny, "tensorboard")
    events = EventAccumulator("runs/tensorboard/tiny/version_0").Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("val/acc")] == [1, 3]
    assert [event.value for event in events.Scalars("test/acc")] == pytest.approx([result["acc"]])


def test_mlflow_has_the_curves_and_the_settings(tiny: Path) -> None:  # noqa: F811
    pytest.importorskip("sqlalchemy")
    client = pytest.importorskip("mlflow.tracking").MlflowClient(tracking_uri="sqlite:///runs/mlflow.db")
    result = fit(tiny, "mlflow")
    experiment = client.get_experiment_by_name("MAML-Blobs-3w2s")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny-seed3"
    assert run.data.metrics["test/acc"] == pytest.approx(result["acc"])
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 4
    assert run.data.params["model/init_args/inner_lr"] == "0.1"


def test_trackio_has_the_curves_and_the_settings(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("TRACKIO_DIR", str(Path("runs/trackio").absolute()))  # which is read when it is imported
    pytest.importorskip("trackio")
    result = fit(tiny, "trackio")
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("lightning_meta")
    assert (run.name, run.config["_Group"]) == ("tiny-seed3", "MAML-Blobs-3w2s")
    assert run.config["model"]["init_args"]["inner_lr"] == 0.1
    rows = SQLiteStorage.get_logs("lightning_meta", "tiny-seed3")
    assert [row["step"] for row in rows if "train/loss" in row] == [0, 1, 2, 3]
    assert [row["test/acc"] for row in rows if "test/acc" in row] == pytest.approx([result["acc"]])


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_missing_package_is_named_in_one_line(
    name: str,
    tiny: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(extras, "RequirementCache", lambda *_, **__: False)
    message = fails(["fit", "--config", str(tiny), "--trainer.logger", str(CONFIGS / f"{name}.yaml")], capsys)
    (line,) = [line for line in message.splitlines() if line.startswith("error: ")]
    extra = "trackio" if name == "trackio" else "loggers"
    assert f"Logger needs {name}>=" in line
    assert line.endswith(f"pip install -r requirements-{extra}.txt")
