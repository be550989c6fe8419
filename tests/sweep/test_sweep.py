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
import warnings
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from lightning_meta import cli
from lightning_meta.cli.children import Ended
from lightning_meta.errors import ConfigError, UsageError
from lightning_meta.sweep import file, report, trial
from lightning_meta.sweep.command import main
from lightning_meta.sweep.file import Parameter, parameter, read
from lightning_meta.sweep.study import Search, pruner
from lightning_meta.sweep.trial import Curve
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
if not given["--model.lr"].startswith("0"):
    print("error: model.lr=" + given["--model.lr"] + " must be a number.")
    sys.exit(2)
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


HYPERBAND = {"type": "hyperband", "min_iter": 1}


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
    monkeypatch.setattr(file, "resolve", lambda words: {})  # it is no training
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
    runs = prod(len(of["values"]) for of in yaml.safe_load(path.read_text())["parameters"].values() if "values" in of)
    assert len(ours) == len({*map(tuple, ours)}) == runs > 1
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
        ({"metric": "val/acc"}, r"metric=val/acc has no name; it needs metric: \{name: val/\.\.\., goal: "),
        ({"metric": None}, r"there is no metric; it needs metric: \{name: val/\.\.\., goal: "),
        ({"parameters": ["model.lr"]}, r"parameters=\['model\.lr'\] must be options with what is tried: parameters: "),
        ({"parameters": {"x": {"values": []}}}, r"x: values=\[\] must be a list with values in it\."),
        ({"parameters": {"x": {"distribution": ["uniform"]}}}, r"x: distribution=\['uniform'\] is not done here"),
        (
            {"parameters": {"x": {"distribution": "int_uniform", "min": 0.5, "max": 2}}},
            r"x: min=0\.5 and max=2 must be whole numbers",
        ),
        ({"parameters": {"x": {"min": 0, "max": math.inf}}}, r"x: min=0 and max=inf must be numbers"),
        (
            {"parameters": {"x": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}}},
            r"x: q=0 must be a number above 0",
        ),
        (
            {"parameters": {"x": {"distribution": "log_uniform", "min": 1, "max": 1000}}},
            r"x: .*max=1000; .*log_uniform_values",
        ),
        ({"early_terminate": "hyperband"}, r"early_terminate=hyperband must be of the type hyperband"),
        ({"early_terminate": HYPERBAND | {"min_iter": 0}}, r"early_terminate\.min_iter=0 must be .* from 1 on"),
        ({"early_terminate": HYPERBAND | {"min_iter": "2"}}, r"early_terminate\.min_iter=2 must be a whole number"),
        ({"early_terminate": HYPERBAND | {"eta": 1}}, r"early_terminate\.eta=1 must be a whole number from 2 on"),
        ({"run_cap": 0}, r"run_cap=0 must be a whole number from 1 on"),
        ({"run_cap": "ten"}, r"run_cap=ten must be a whole number from 1 on"),
        ({"command": "python -m lightning_meta fit"}, r"command=python -m lightning_meta fit must be a list of words"),
        ({"command": ["python", "train.py", "${args}"]}, r"it must be one of `python -m lightning_meta fit`"),
        ({"command": ["${interpreter}", "-m", "lightning_meta", "fit", "${argz}"]}, r"\$\{argz\} is not known"),
    ],
)
def test_what_is_not_done_is_named(changes: dict[str, Any], message: str, stand_in: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(Path(write(**changes)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: [grid\nmetric: {", r"^other\.yaml is not valid YAML: [^\n]+$"),
        ("model: {class_path: MAML}\ntrainer: {max_steps: 4}", r"^other\.yaml is no sweep: it has no method, [^\n]+$"),
        ("- a", r"^other\.yaml is no sweep: it has no method"),
    ],
)
def test_other_files_are_no_sweeps(content: str, message: str, stand_in: Path) -> None:
    Path("other.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(Path("other.yaml"))


def test_there_is_no_such_sweep(stand_in: Path) -> None:
    Path("configs/sweep").mkdir(parents=True)
    for name in ("rates", "steps"):
        Path(f"configs/sweep/{name}.yaml").touch()
    with pytest.raises(ConfigError, match=r"Did you mean rates\? There are: rates, steps\.$"):
        main(["rate"])
    with pytest.raises(ConfigError, match=r"configs/sweep\. There are: rates, steps\.$"):
        main(["nosuch"])


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
    file = write(**grid(0.2, 0.99))
    assert run(file) == 1
    assert {row["model.lr"]: row["state"] for row in rows() if row["model.lr"]} == {"0.2": "complete", "0.99": "fail"}
    said = capsys.readouterr().out
    assert "FAILED: it ended with status 1: error: it diverged." in said
    (log,) = [path for path in Path("runs/lrs").glob("trial_*/log.txt") if "it diverged" in path.read_text()]
    last = f"Failed: 1 of 2 trials, which are not run again; see {log}"
    assert said.splitlines()[-1] == last
    assert run(file) == 1, "it is still failed"
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert len(calls()) == 2


def test_all_failures_are_named(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write(**grid(0.97, 0.98, 0.99))) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "Failed: 3 of 3 trials, which are not run again; see runs/lrs/trial_{0,1,2}/log.txt"


def test_what_the_command_line_refuses_stops_the_sweep(stand_in: Path) -> None:
    """The others would be refused too where an option does not exist, or be run in vain."""
    with pytest.raises(
        UsageError, match=r"^trial 0, model\.lr [abc]: model\.lr=[abc] must be a number\. \(runs/lrs/trial_0"
    ):
        main([write(**grid("a", "b", "c"))])
    assert len(calls()) == 1


def test_a_metric_that_is_not_logged_is_answered_with_those_that_are(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(metric={"name": "val/loss"}), "--trials", "1") == 1
    assert "runs/lrs/trial_0 has no val/loss in metrics.csv; there are: val/acc\n" in capsys.readouterr().out


def test_no_trials_leave_nothing(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, before = write(), {*Path().rglob("*")}
    with pytest.raises(UsageError, match=r"--trials -1 must be 0 or more"):
        main([file, "--trials", "-1"])
    assert run(file, "--trials", "0") == 0
    assert capsys.readouterr().out == "No trials yet.\n"
    assert {*Path().rglob("*")} == before


def test_pictures_of_equal_trials_are_drawn_without_a_warning(tmp_path: Path) -> None:
    study = optuna.create_study()
    for _ in range(2):
        study.add_trial(
            optuna.trial.create_trial(
                params={"x": 0.5}, distributions={"x": optuna.distributions.FloatDistribution(0, 1)}, value=1.0
            )
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report.pictures(study, "val/acc", tmp_path)
    assert not [str(one.message) for one in caught if "identical" in str(one.message)]


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
        if row["state"] == "complete" or row["model.lr"] in ("0.1", "0.2"):  # others do not wait to be stopped
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
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from lightning_meta.sweep import command, file; "
        f"file.resolve = lambda words: {{}}; command.main([{file!r}])"
    )
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
    assert re.search(r"^Not finished: trial \d; the same command goes on\.$", said, re.MULTILINE)
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
    other = {"parameters": {"model.lr": {"min": 0.0, "max": 0.5}}}
    with pytest.raises(
        ConfigError, match=r"optuna\.journal has the trials of another sweep.* Give lrs\.yaml another name"
    ):
        main([write(**other), "--trials", "2"])
    assert run(write("others", **other), "--trials", "1", "--storage", "runs/lrs/optuna.journal") == 0


def test_a_folder_has_the_trials_of_one_storage(stand_in: Path) -> None:
    """Else the stand-in's curve of a former trial 0, 0.2, would be taken for that of the new one."""
    assert run(write(**grid(0.2))) == 0
    refused = r"^runs/lrs has trials \(of runs/lrs/optuna\.journal\) that are not those of "
    for words in ([], ["--storage", "b"], ["--storage", "b"]):
        if not words:
            Path("runs/lrs/optuna.journal").rename("former")
        with pytest.raises(ConfigError, match=refused + (words[1] if words else r"runs/lrs/optuna\.journal")):
            main([write(**grid(0.9)), *words])
    assert len(calls()) == 1
    assert run(write(**grid(0.2)), "--storage", "former") == 0, "as the message says"
    Path("runs/lrs").rename("runs/away")
    assert run(write(**grid(0.9)), "--storage", "b") == 0, "as the message says"
    assert [row["val/acc"] for row in rows()] == ["0.9"]
    with pytest.raises(ConfigError, match=r"^runs/lrs has trials \(of b\) that are not those of former"):
        main([write(**grid(0.2)), "--storage", "former"])


def test_trials_of_an_unknown_storage_are_not_taken_over(stand_in: Path) -> None:
    assert run(write(**grid(0.2))) == 0
    Path("runs/lrs/study.txt").unlink()  # as before there was one
    assert run(write(**grid(0.2))) == 0
    assert len(calls()) == 1
    Path("runs/lrs/study.txt").unlink()
    Path("runs/lrs/optuna.journal").unlink()
    with pytest.raises(ConfigError, match=r"^runs/lrs has trials that are not those of runs/lrs/optuna\.journal"):
        main([write(**grid(0.9))])


@pytest.mark.parametrize("content", ["hello", "hello\nworld\n", "[1, 2]\n", "{}\n", "7"])
def test_files_that_are_no_journals_are_left_alone(content: str, stand_in: Path) -> None:
    Path("notes").write_text(content)
    with pytest.raises(ConfigError, match=r"^--storage notes is another file than a journal .*; give a name that"):
        main([write(**grid(0.2)), "--storage", "notes"])
    assert Path("notes").read_text() == content
    assert not Path("runs").exists()


def test_a_storage_is_a_file(stand_in: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--storage lightning_meta: Is a directory; give a file"):
        main([write(**grid(0.2)), "--storage", "lightning_meta"])
    with pytest.raises(
        ConfigError, match=r"^--storage lrs\.yaml/x: .*; give a file, in a folder that can be written to"
    ):
        main([write(**grid(0.2)), "--storage", "lrs.yaml/x"])


# ---- a real training ------------------------------------------------------------------------------------------------


def test_trainings_are_tried(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """In this process, which takes less time than to start one."""

    def here(words: Sequence[str], **_: Any) -> Ended:
        monkeypatch.setattr("sys.argv", ["lightning_meta", *words[3:]])
        cli.main([*words[3:]])
        return Ended(0, 0)

    monkeypatch.setattr(trial.children, "run", here)
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


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"model.inner_lrr": {"values": [0.1]}},
            "error: model: 'inner_lrr' is not accepted by MAML. Did you mean inner_lr?",
        ),
        ({"model.inner_lr": {"values": ["abc"]}}, "error: model.inner_lr=abc must be a number"),
        ({"modle.inner_lr": {"min": 0.1, "max": 0.2}}, "error: option --modle.inner_lr"),
    ],
)
def test_what_is_misspelt_is_found_before_the_first_trial(
    space: dict[str, Any],
    message: str,
    tiny: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["${interpreter}", "-m", "${program}", "fit", "--config", str(tiny), "${args}"]
    assert run(write("rates", command=command, parameters=space, run_cap=2)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert not Path("runs").exists()
