"""`sweep`: its commands are those of W&B's agent, it looks at no test episodes, and no trial is lost or run twice."""

import csv
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from lightning_meta import cli
from lightning_meta.cli import sweep
from lightning_meta.cli.children import Ended
from lightning_meta.cli.sweep import Curve, Parameter, Search, main, parameter, pruner, read
from lightning_meta.errors import ConfigError, UsageError
from tests.cli.test_trainer import ROOT, tiny  # noqa: F401 - a fixture
from tests.configs.test_sweeps import GRIDS

optuna = pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

# In place of `python -m lightning_meta`: notes how it was called, and logs a curve that the setting `lr` decides.
STAND_IN = """
import csv, json, os, signal, sys, time
from pathlib import Path

words = [part for word in sys.argv[1:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
given = dict(zip(words[1::2], words[2::2]))
run = Path("runs", given["--name"], "version_0")
run.mkdir(parents=True, exist_ok=True)
with open("calls", "a") as calls:
    calls.write(json.dumps(given) + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
lr = float(given["--model.lr"])
if lr > 0.95:
    sys.exit("error: it diverged.")
(run / "config.yaml").touch()
rows = [{"step": step, "val/acc": lr * step / 3, "test/acc": 1 - lr} for step in range(1, 4)]
for row in rows:
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerows(rows[: row["step"]])
    if Path("slow").exists() and lr < 0.5 and row["step"] == 2:
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints/last.ckpt").touch()
        time.sleep(float(Path("slow").read_text()))
"""


def write(name: str = "lrs", **changes: Any) -> str:
    content = {
        "program": "lightning_meta",
        "method": "random",
        "metric": {"name": "val/acc", "goal": "maximize"},
        "command": ["${interpreter}", "-m", "${program}", "fit", "--data.k_shot", "1", "${args}"],
        "parameters": {"model.lr": {"min": 0.0, "max": 0.9}},
    } | changes
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def grid(*values: float) -> dict[str, Any]:
    return {"method": "grid", "parameters": {"model.lr": {"values": [*values]}}}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lightning_meta").mkdir()
    (tmp_path / "lightning_meta/__main__.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def run(*words: str) -> int:
    """Its exit status."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def calls() -> list[dict[str, str]]:
    return [json.loads(line) for line in Path("calls").read_text().splitlines()]


def rows(name: str = "lrs") -> list[dict[str, str]]:
    with Path("runs", name, "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_commands_of_a_grid_are_those_of_wandb(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of them, whatever the order; the agent itself makes the ones that they are compared with."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    theirs: list[list[str]] = []

    class NotStarted:
        def __init__(self, command: list[str], **_: Any) -> None:
            theirs.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", NotStarted)
    agent = wandb_agent.Agent(api=None, queue=None)
    ours, swept = [], read(path)
    search = Search(swept, tmp_path / "storage", swept.cap or 0)
    while True:
        with search.claim() as claimed:
            if claimed is None:
                break
            trial, values, _ = claimed
            ours.append(swept.words(values))
            search.study.tell(trial, random.random())
        agent._sweep_command = yaml.safe_load(path.read_text())["command"]
        agent._command_run(
            {"run_id": "x", "program": swept.program, "args": {key: {"value": value} for key, value in values.items()}}
        )
    assert len(ours) == len({*map(tuple, ours)}) == 9
    assert [["python" if word == sys.executable else word for word in words] for words in ours] == theirs


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value": 3}, Parameter((3,))),
        (3, Parameter((3,))),
        ({"values": [1, "a", None, True]}, Parameter((1, "a", None, True))),
        ({"values": [[1, 2], [3]]}, Parameter(("[1, 2]", "[3]"))),
        ({"min": 1, "max": 5}, Parameter(low=1, high=5, whole=True)),
        ({"min": 1, "max": 5.0}, Parameter(low=1, high=5)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1}, Parameter(low=1e-4, high=0.1, log=True)),
        ({"distribution": "log_uniform", "min": -2, "max": 0}, Parameter(low=math.exp(-2), high=1, log=True)),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}, Parameter(low=0, high=1, step=0.25)),
    ],
)
def test_parameters_mean_what_wandb_says(given: Any, expected: Parameter) -> None:
    assert parameter("x", given) == expected


def test_draws_follow_their_distribution() -> None:
    """Quartiles of many draws, against those of the distributions."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = {
        "log": (parameter("x", {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}), [1e-3, 1e-2, 1e-1]),
        "flat": (parameter("x", {"min": 0.0, "max": 8.0}), [2, 4, 6]),
    }
    for name, (one, quartiles) in kinds.items():
        drawn = sorted(float(one.suggest(study.ask(), name)) for _ in range(400))
        found = [drawn[100 * k] for k in (1, 2, 3)]
        assert found == pytest.approx(quartiles, rel=0.5 if name == "log" else 0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": {"name": "test/acc", "goal": "maximize"}}, r"metric\.name=test/acc: .*validation episodes"),
        ({"metric": {"name": "train/loss"}}, r"one of val/\.\.\."),
        ({"metric": {"name": "val/acc", "goal": "max"}}, r"metric\.goal=max must be maximize or minimize"),
        ({"method": "gird"}, r"method=gird must be one of grid, random, bayes"),
        ({"method": "grid"}, r"model\.lr: a grid needs `values`"),
        (
            {"parameters": {"x": {"distribution": "beta"}}},
            r"x: distribution=beta is not done here; there are",
        ),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, r"x: min=2 and max=1"),
        ({"parameters": {"x": {"min": 2}}}, r"x: give value, values, or min and max"),
        ({"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, r"min=0 has no logarithm"),
        ({"early_terminate": {"type": "envelope"}}, r"early_terminate=.* must be of the type hyperband"),
        ({"metod": "grid"}, r"metod is not known\. Did you mean method\?"),
        ({"command": ["python", "train.py", "${args}"]}, r"it must be one of `python -m lightning_meta fit`"),
        ({"command": ["${interpreter}", "-m", "lightning_meta", "fit", "${argz}"]}, r"\$\{argz\} is not known"),
    ],
)
def test_what_is_not_done_is_named(changes: dict[str, Any], message: str, stand_in: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(Path(write(**changes)))


def test_a_search_without_an_end_is_refused(stand_in: Path) -> None:
    with pytest.raises(UsageError, match=r"a sweep by random has no end: give --trials N, or run_cap in lrs.yaml"):
        main([write()])


# ---- trials ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_run_once_and_chosen_by_validation(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`test/acc` of the stand-in falls where `val/acc` rises: who looked at it would choose the other end."""
    file = write(**grid(0.2, 0.9, 0.4))
    assert run(file) == 0
    assert sorted(call["--model.lr"] for call in calls()) == ["0.2", "0.4", "0.9"]
    assert {call["--test_after_fit"] for call in calls()} == {"false"}
    assert sorted(call["--name"] for call in calls()) == [f"lrs/trial_{n}" for n in range(3)]
    best = next(row["trial"] for row in rows() if row["model.lr"] == "0.9")
    said = capsys.readouterr().out
    assert f"Best by val/acc: trial {best}, 0.9000." in said
    folder = f"runs/lrs/trial_{best}/version_0"
    assert f"python -m lightning_meta test --config {folder}/config.yaml --ckpt_path {folder}" in said
    for name in ("curves", "history", "parallel_coordinates", "importances"):
        assert Path(f"runs/lrs/{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert run(file) == 0
    assert len(calls()) == 3


def test_a_failure_is_a_trial_too(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write(**grid(0.2, 0.99))) == 1
    assert {row["model.lr"]: row["state"] for row in rows() if row["model.lr"]} == {"0.2": "complete", "0.99": "fail"}
    assert "FAILED: it ended with status 1: error: it diverged." in capsys.readouterr().out


def drawn(folder: Path, *words: str) -> list[str]:
    """What a sweep draws in a folder of its own."""
    folder.mkdir()
    (folder / "lightning_meta").symlink_to(Path("lightning_meta").absolute())
    here = Path.cwd()
    os.chdir(folder)
    try:
        for word in words:
            assert run(write(), "--trials", word) == 0
        return [call["--model.lr"] for call in calls()]
    finally:
        os.chdir(here)


def test_what_is_drawn_does_not_depend_on_stops(stand_in: Path) -> None:
    whole, parts = drawn(stand_in / "whole", "4"), drawn(stand_in / "parts", "1", "2", "4")
    assert whole == parts
    assert len({*whole}) == 4


def test_bad_trials_are_stopped_and_good_ones_are_not(stand_in: Path) -> None:
    """A bad one waits after its second validation, of which the best third goes on; the first goes on in any case."""
    Path("slow").write_text("8")
    early = {"early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3}}
    file = write(**grid(0.8, 0.1, 0.2, 0.9), **early)
    assert run(file) == 0
    states = {row["model.lr"]: row["state"] for row in rows()}
    assert states["0.9"] == "complete"
    assert "pruned" in (states["0.1"], states["0.2"])
    for row in rows():
        assert int(row["validations"]) == (3 if row["state"] == "complete" else 2)


@pytest.mark.parametrize(("settings", "least"), [({"min_iter": 3}, 3), ({"max_iter": 27, "s": 2, "eta": 3}, 3)])
def test_rungs_are_those_of_hyperband(settings: dict[str, int], least: int, stand_in: Path) -> None:
    """Of trials with the same curve, the worst of three is stopped at validation 3, not before; W&B's brackets."""
    made = pruner(read(Path(write(early_terminate={"type": "hyperband", **settings}))))
    study = optuna.create_study(direction="maximize", pruner=made)
    stopped = []
    for level in (0.9, 0.8, 0.1):
        trial = study.ask()
        for step in range(1, 10):
            trial.report(level, step)
            if trial.should_prune():
                stopped.append((level, step))
                break
        study.tell(trial, level)
    assert stopped == [(0.8, least), (0.1, least)]


def test_half_a_line_is_no_value(tmp_path: Path) -> None:
    file = tmp_path / "version_0/metrics.csv"
    file.parent.mkdir()
    file.write_text("step,train/loss,val/acc\n0,1.5,\n1,,0.25\n3,,0.8")
    study = optuna.create_study()
    curve = Curve(study.ask(), tmp_path, "val/acc")
    curve.read()
    assert curve.values == [0.25]
    with file.open("a") as more:
        more.write("75\n")
    curve.read()
    assert study.trials[0].intermediate_values == {1: 0.25, 2: 0.875}


# ---- stops and neighbours -------------------------------------------------------------------------------------------


def begin(file: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own; its trials are stand-ins."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from lightning_meta.cli.sweep import main; main([{file!r}])"
    return subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE)


def test_a_trial_that_was_stopped_goes_on_and_none_is_run_twice(stand_in: Path) -> None:
    Path("slow").write_text("60")
    file = write(**grid(0.1, 0.8, 0.9))
    process = begin(file)
    deadline = time.monotonic() + 60
    while not [*Path("runs").glob("lrs/trial_*/version_0/checkpoints/last.ckpt")] and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Not finished: trials" in said
    stopped = next(call["--name"] for call in calls() if call["--model.lr"] == "0.1")
    Path("slow").unlink()
    assert run(file) == 0
    assert {row["state"] for row in rows()} == {"complete"}
    again = [call for call in calls() if call["--name"] == stopped]
    assert [call.get("--ckpt_path") for call in again] == [None, "last"]
    assert len({call["--name"] for call in calls()}) == len(calls()) - 1 == 3


@pytest.mark.slow
def test_processes_beside_each_other_share_the_trials(stand_in: Path) -> None:
    file = write(**grid(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    both = [begin(file) for _ in range(2)]
    assert {process.wait(timeout=120) for process in both} <= {0, 75}
    assert sorted(call["--model.lr"] for call in calls()) == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    assert run(file) == 0
    assert len(calls()) == 6


def test_another_sweep_of_this_name_is_refused(stand_in: Path) -> None:
    assert run(write(), "--trials", "1") == 0
    with pytest.raises(ConfigError, match=r"optuna\.journal has the trials of another sweep"):
        main([write(parameters={"model.lr": {"min": 0.0, "max": 0.5}}), "--trials", "2"])
    assert run(write(parameters={"model.lr": {"min": 0.0, "max": 0.5}}), "--trials", "1", "--storage", "b") == 0


# ---- a real training ------------------------------------------------------------------------------------------------


def test_trainings_are_tried(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """In this process, which takes less time than to start one."""

    def here(words: Sequence[str], **_: Any) -> Ended:
        monkeypatch.setattr("sys.argv", ["lightning_meta", *words[3:]])
        cli.main([*words[3:]])
        return Ended(0, 0)

    monkeypatch.setattr(sweep.children, "run", here)
    command = ["${interpreter}", "-m", "${program}", "fit", "--config", str(tiny), "${args}"]
    space = {"model.inner_lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0}}
    assert run(write("rates", method="bayes", command=command, parameters=space, run_cap=2)) == 0
    for number, row in enumerate(rows("rates")):
        folder = Path(f"runs/rates/trial_{number}/version_0")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model"]["init_args"]["inner_lr"] == pytest.approx(float(row["model.inner_lr"]))
        assert not (folder / "result.json").exists(), "a trial is not tested"
        with (folder / "metrics.csv").open(newline="") as file:
            validated = [float(line["val/acc"]) for line in csv.DictReader(file) if line["val/acc"]]
        assert float(row["val/acc"]) == pytest.approx(max(validated))
        assert int(row["validations"]) == len(validated) == 2
    test = re.search(r"lightning_meta (test .*)", capsys.readouterr().out)
    assert test
    cli.main(test[1].split())
    assert [*Path("runs/rates").rglob("result.json")]
