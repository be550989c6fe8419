"""The sweeps: the commands that `wandb agent` makes of them are accepted by the command line, and train."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from wandb import wandb_agent

from lightning_meta.cli import main
from lightning_meta.datamodules import Glyphs
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.reports import Report
from lightning_meta.sweep.file import read

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweep").glob("*.yaml"))
GRIDS = [path for path in SWEEPS if yaml.safe_load(path.read_text())["method"] == "grid"]
PROGRAM = ["/usr/bin/env", "python", "-m", "lightning_meta"]
Agent = Callable[[Path], list[list[str]]]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Agent:
    """Gives the command lines of a sweep, made by W&B's agent. The server only tells it the values of each run."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):  # set by the agent
        monkeypatch.setenv(name, str(tmp_path))
    commands: list[list[str]] = []

    class NotStarted:
        def __init__(self, command: list[str], **_: Any) -> None:
            commands.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", NotStarted)

    def make(path: Path) -> list[list[str]]:
        sweep = yaml.safe_load(path.read_text())
        agent = wandb_agent.Agent(api=None, queue=None)
        agent._sweep_command = sweep["command"]
        for number, values in enumerate(grid(sweep)):
            args = {key: {"value": value} for key, value in values.items()}
            agent._command_run({"run_id": f"run{number}", "program": sweep["program"], "args": args})
        return commands

    return make


def grid(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    assert sweep["method"] == "grid"
    parameters = sweep["parameters"]
    combinations = product(*(parameter["values"] for parameter in parameters.values()))
    return [dict(zip(parameters, values, strict=True)) for values in combinations]


def resolved(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The config that a command would run."""
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--print_config"])
    out, err = capsys.readouterr()
    assert exit_info.value.code in (None, 0), err
    return yaml.safe_load(out)


def test_the_sweeps_are_there() -> None:
    assert [path.stem for path in SWEEPS] == ["algorithm_seed", "inner_loop", "learning_rates", "number_of_tasks"]
    assert [path.stem for path in GRIDS] == ["algorithm_seed", "inner_loop", "number_of_tasks"]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_commands_are_accepted_and_differ(path: Path, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """The first and the last, which differ in all parameters."""
    commands = agent(path)
    assert len(commands) == {"algorithm_seed": 9, "inner_loop": 9, "number_of_tasks": 6}[path.stem]
    found = []
    for command in (commands[0], commands[-1]):
        assert command[:5] == [*PROGRAM, "fit"]
        config = resolved(command[4:], capsys)
        model = config["model"]
        settings = model["init_args"]
        found.append((model["class_path"].split(".")[-1], config["seed_everything"], settings.get("inner_lr")))
        found[-1] += (settings.get("inner_steps"), settings.get("eval_inner_steps"))
        found[-1] += (config["data"]["init_args"].get("tasks"),)
    expected = {
        "algorithm_seed": [("MAML", 0, 0.4, 1, 3, None), ("ProtoNet", 2, None, None, None, None)],
        "inner_loop": [("MAML", 0, 0.1, 1, None, None), ("MAML", 0, 0.4, 5, None, None)],
        "number_of_tasks": [("GPICL", 0, None, None, None, 1), ("GPICL", 0, None, None, None, 65536)],
    }
    assert found == expected[path.stem]


def test_a_command_trains(agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bank = ClassBank.from_classes(torch.randint(256, (10, 20, 1, 28, 28), dtype=torch.uint8))
    monkeypatch.setattr(Glyphs, "prepare_data", lambda self: None)
    monkeypatch.setattr(Glyphs, "load_source", lambda self, split: bank)
    monkeypatch.setattr(Report, "on_test_end", lambda self, trainer, module: None)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    command = agent(ROOT / "configs" / "sweep" / "inner_loop.yaml")[-1]
    short = "--trainer.max_steps 2 --trainer.accelerator cpu --model.backbone.hidden 4 --data.meta_batch_size 2"
    few = "--data.val_episodes 2 --data.test_episodes 2 --trainer.logger configs/logger/csv.yaml"
    cli = main([*command[4:], *short.split(), *few.split()])
    assert cli.trainer.fit_loop.epoch_loop.global_step == 2
    assert (cli.model.inner_steps, cli.model.eval_inner_steps) == (5, 5)
    assert (tmp_path / "runs" / "maml_glyphs_5w1s" / "version_0" / "result.json").is_file()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_header_says_how_to_start_it(path: Path) -> None:
    assert f"wandb sweep {path.relative_to(ROOT)} " in path.read_text()
    assert f"python -m lightning_meta sweep {path.stem} " in path.read_text()


def test_the_commands_of_a_search_are_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    command = read(ROOT / "configs/sweep/learning_rates.yaml").words(
        {"model.inner_lr": 0.02, "model.optimizer.lr": 0.003}
    )
    config = resolved(command[4:], capsys)
    settings = config["model"]["init_args"]
    assert (settings["inner_lr"], settings["optimizer"]["init_args"]["lr"]) == (0.02, 0.003)
    assert config["trainer"]["max_steps"] == 10 * config["data"]["init_args"]["steps_per_epoch"] == 1000
