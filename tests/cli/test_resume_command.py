"""`fit --ckpt_path`: where a stopped run goes on, what is refused; and `--replay` of a step that diverged."""

import csv
import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_meta.checkpoints import read_of
from lightning_meta.cli import main
from lightning_meta.errors import ConfigError
from lightning_meta.results.compare import main as compare
from tests.cli.test_trainer import fails, tiny  # noqa: F401 - a fixture
from tests.conftest import Blobs

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

RUN = Path("runs/tiny/version_0")
LAST = RUN / "checkpoints/last.ckpt"


def callbacks(**checkpoint: Any) -> list[str]:
    chosen = [
        {"class_path": "lightning_meta.callbacks.EpisodicCheckpoint", "init_args": checkpoint},
        {"class_path": "lightning_meta.callbacks.StopOnDivergence"},
    ]
    return ["--test_after_fit", "false", "--trainer.callbacks", json.dumps(chosen)]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def stopped(tiny: Path) -> list[str]:  # noqa: F811
    """The command of a training that has been stopped after 6 of its 8 steps, in epochs of 4."""
    command = ["fit", "--config", str(tiny), *callbacks(), "--data.steps_per_epoch", "4", "--trainer.max_steps"]
    main([*command, "6"])
    return [*command, "8"]


def test_a_resumed_run_goes_on_in_its_folder_as_if_it_had_not_stopped(stopped: list[str]) -> None:
    main([*stopped, "--name", "whole"])
    with (RUN / "metrics.csv").open("a") as file:  # the process lived on after its last checkpoint: step 6 comes again
        csv.DictWriter(file, rows(RUN)[-1]).writerow({"step": 6, "train/loss": 123})
    main([*stopped, "--ckpt_path", "last"])
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    assert rows(RUN) == rows(Path("runs/whole/version_0"))
    assert len(rows(RUN)) == 8 + 2, "steps and validations"
    assert yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["max_steps"] == 8
    assert sorted(path.name for path in LAST.parent.iterdir()) == sorted(
        path.name for path in Path("runs/whole/version_0/checkpoints").iterdir()
    )


@pytest.mark.parametrize(
    ("stops", "accumulate"), [((4, 8, 12), 1), ((6, 7, 14), 1), ((4, 10), 2)], ids=["epochs", "within", "accumulating"]
)
def test_after_several_resumes_the_curves_are_those_of_a_straight_run(
    stops: tuple[int, ...],
    accumulate: int,
    tiny: Path,  # noqa: F811
) -> None:
    """Where not every step is logged, a step that is counted twice moves all rows after it."""
    command = [
        "fit", "--config", str(tiny), *callbacks(), "--data.steps_per_epoch", "4", "--trainer.log_every_n_steps", "3",
        "--trainer.accumulate_grad_batches", str(accumulate), "--trainer.max_steps",
    ]  # fmt: skip
    main([*command, str(stops[-1]), "--name", "whole"])
    main([*command, str(stops[0])])
    for stop in stops[1:]:
        main([*command, str(stop), "--ckpt_path", "last"])
    whole = rows(Path("runs/whole/version_0"))
    assert rows(RUN) == whole
    assert [int(row["step"]) for row in whole if row["val/acc"]] == list(range(3, stops[-1], 4))
    assert [int(row["step"]) for row in whole if row["train/loss"]] == list(range(2, stops[-1], 3))


@pytest.mark.parametrize("changed", [["--model.inner_lr", "0.2"], ["--ckpt_path", "best"]], ids=["settings", "best"])
def test_another_training_from_a_checkpoint_gets_a_folder_of_its_own(stopped: list[str], changed: list[str]) -> None:
    before = {path: path.read_bytes() for path in RUN.rglob("*.*") if path.is_file()}
    main([*stopped, "--ckpt_path", str(LAST), *changed])
    assert {path: path.read_bytes() for path in RUN.rglob("*.*") if path.is_file()} == before
    assert torch.load("runs/tiny/version_1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 8


def test_results_name_seed_data_code_and_machines_of_the_training(
    tiny: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever command tests it, on whatever data, with whatever code."""

    def at(commit: str, *args: str) -> str:
        monkeypatch.setattr("lightning_meta.provenance.git_commit", lambda: commit)
        monkeypatch.setattr("lightning_meta.modules.base.hardware", lambda device: f"a {commit}, one")
        capsys.readouterr()
        main([args[0], "--config", str(tiny), *args[1:]])
        return capsys.readouterr().err

    def facts(run: str) -> tuple[Any, ...]:
        result = json.loads(Path("runs", run, "result.json").read_text())
        machines = "; ".join(f"a {commit}, one" for commit in result["git_commit"].split(", "))
        assert result["trained_with"] == machines and result["hardware"] != machines
        return tuple(result[key] for key in ("seed", "trained_on", "git_commit", "data"))

    def config() -> dict[str, Any]:
        return yaml.safe_load((RUN / "config.yaml").read_text())

    at("aaa", "fit", "--seed_everything", "5", "--trainer.max_steps", "2")
    assert facts("tiny/version_0") == (5, "Blobs", "aaa", "Blobs")
    assert (RUN / "config.yaml").read_text().startswith("# git commit: aaa\n")
    said = at("bbb", "test", "--ckpt_path", str(LAST), "--data", "tests.cli.test_resume_command.Renamed")
    assert facts("maml_renamed_3w2s/version_0") == (5, "Blobs", "aaa", "Renamed")
    assert "note: the seed" not in said
    said = at("bbb", "fit", "--ckpt_path", str(LAST), "--seed_everything", "7")
    assert facts("tiny/version_0")[:2] == (5, "Blobs")
    assert "note: the seed is that of the checkpoint's training, 5." in said
    assert (RUN / "config.yaml").read_text().startswith("# git commit: aaa, bbb\n")
    assert (config()["seed_everything"], config()["ckpt_path"]) == (5, None)
    at("ccc", "test", "--ckpt_path", str(LAST))
    assert facts("tiny/version_1") == (5, "Blobs", "aaa, bbb", "Blobs")
    at("ccc", "fit", "--seed_everything", "6")
    at("ccc", "test", "--ckpt_path", "runs/tiny/version_2/checkpoints/last.ckpt")
    assert facts("tiny/version_3") == (6, "Blobs", "ccc", "Blobs")
    compare([f"runs/tiny/version_{version}" for version in (1, 3)])  # two seeds, not one twice


class Renamed(Blobs):
    """Other data, for a test."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = "Renamed"


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_what_is_no_checkpoint_is_refused_and_never_executed(
    tiny: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("pickle.ckpt").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    torch.save({"state_dict": Bomb()}, "torch.ckpt")
    Path("random.ckpt").write_bytes(bytes(range(256)) * 40)
    Path("empty.ckpt").write_bytes(b"")
    for name in ("pickle", "torch", "random", "empty"):
        with pytest.raises(ConfigError, match=rf"checkpoint {name}.ckpt \(\d+ bytes\) cannot be read"):
            read_of(Path(f"{name}.ckpt"), "lightning_meta.algorithms.MAML")
    assert "cannot be read" in fails(["fit", "--config", str(tiny), "--ckpt_path", "torch.ckpt"], capsys)
    assert not Path("exploded").exists()
    for keyword in ("last", "best"):
        message = fails(["fit", "--config", str(tiny), "--ckpt_path", keyword], capsys)
        assert f"--ckpt_path {keyword}: there is no checkpoint in runs/tiny/" in message
    assert "hpc does not exist" in fails(["fit", "--config", str(tiny), "--ckpt_path", "hpc"], capsys)


def test_the_command_in_the_message_replays_the_episodes_that_diverged(
    tiny: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    far_too_fast = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e18", "--data.seed", "3"]
    message = fails(["fit", "--config", str(tiny), *callbacks(every_n_train_steps=1), *far_too_fast], capsys)
    step, ids = re.search(r"at global step (\d+)\.\n.*episodes \[([\d, ]+)\]", message).groups()
    command = shlex.split(re.search(r"python -m lightning_meta (fit .*)", message)[1])
    assert int(step) > 0
    assert str(LAST) in command, "from the last good weights"
    place = command.index("--ckpt_path")
    from_the_start = command[:place] + command[place + 2 :]
    before = sorted(Path().rglob("*"))
    outputs = []
    for args in (command, from_the_start):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(args)
        assert not end.value.code
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1], "the same weights"
    losses = {int(i): float(loss) for i, loss in re.findall(r"episode (\d+): loss ([\w.+-]+),", outputs[0])}
    assert list(losses) == [int(i) for i in ids.split(",")]
    assert not all(torch.tensor(loss).isfinite() for loss in losses.values())
    assert sorted(Path().rglob("*")) == before, "a replay writes nothing"

    early = [*command[:-1], "0"]
    assert "the checkpoint is of step" in fails(early, capsys)
    assert "the training ends after 4 steps" in fails(
        ["fit", "--config", str(tiny), *callbacks(), "--replay", "4"], capsys
    )
