"""The table of learners: two families on the same tasks, against what `test` says of each, and the exact posterior."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_meta.benchmark import learners
from lightning_meta.cli import main
from lightning_meta.errors import ConfigError
from tests.benchmark.test_domains import of

FUNCTIONS = {"k_shot": 4, "n_query": 6, "steps_per_epoch": 2, "val_episodes": 2, "test_episodes": 6}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    return tmp_path


def trained(name: str, content: dict[str, Any]) -> dict[str, float]:
    """Train and test a run; what the test measured."""
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    cli = main(["fit", "--config", f"{name}.yaml"])
    return {key: value.item() for key, value in cli.trainer.callback_metrics.items() if key.startswith("test/")}


def table() -> dict[str, Any]:
    return json.loads(Path("runs/learners/learners.json").read_text())


def test_classifiers_of_two_families(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"proto": "ProtoNet", "matching": "MatchingNet"}
    measured = [trained(name, of("tests.conftest.Blobs", algorithm)) for name, algorithm in names.items()]
    capsys.readouterr()
    learners.main(["proto", "matching", "--episodes", "6"])
    rows, printed = table()["rows"], capsys.readouterr().out
    for row, of_test in zip(rows, measured, strict=True):
        assert row["score"] == pytest.approx([of_test["test/acc"], of_test["test/acc_ci95"]])
        assert row["nats"][0] == pytest.approx(-of_test["test/loss"])  # both are trained by cross-entropy
        assert row["tasks"] in (8, 16) and row["minutes"] > 0 and row["ms"] > 0 and 0 <= row["ece"] <= 1
    assert [row["learner"] for row in rows] == ["ProtoNet", "MatchingNet"]
    assert printed.count("\n| ") == 2 and "| `proto` |" in printed

    fewer, other = of("tests.conftest.Blobs"), of("tests.conftest.Blobs")
    fewer["data"]["init_args"] = fewer["data"]["init_args"] | {"n_query": 1}
    other["data"]["init_args"] = other["data"]["init_args"] | {"seed": 1}
    trained("fewer", fewer)
    trained("other", other)
    learners.main(["proto", "fewer", "--episodes", "6"])
    assert table()["n_query"] == 2 and table()["rows"][0] == rows[0] | {"ms": table()["rows"][0]["ms"]}
    with pytest.raises(ConfigError, match=r"other.* \(Blobs, data.seed=1\) are not those of .*proto.* data.seed=0\)"):
        learners.main(["proto", "other", "--episodes", "6"])


def test_functions_beside_what_can_be_known(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = of("tests.conftest.Blobs")
    content["trainer"]["callbacks"] += [{"class_path": "lightning_meta.reports.ProcessFits"}]
    content["data"] = {"class_path": "lightning_meta.datamodules.GaussianProcess", "init_args": FUNCTIONS}
    model: dict[str, Any] = {
        "class_path": "lightning_meta.algorithms.ConditionalNeuralProcess",
        "init_args": {"width": 8},
    }
    measured = trained("cnp", content | {"model": model})
    learners.main(["cnp", "--episodes", "6"])
    row, known = table()["rows"]
    assert row["score"][0] == pytest.approx(measured["test/mse"]) and row["ece"] is None
    assert row["nats"] == pytest.approx([measured["test/log_likelihood"], measured["test/log_likelihood_ci95"]])
    assert known["learner"] == "Bayes' rule" and known["nats"][0] > row["nats"][0] and known["ms"] is None
    assert known["nats"][0] == pytest.approx(measured["test/gp_averaged_log_likelihood"], abs=1e-6)
    assert "| Bayes' rule | what can be known |" in capsys.readouterr().out
