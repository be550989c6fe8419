"""`fit --seeds`: a seed is the run that it would be alone, none is trained twice, and intervals are what they say."""

import csv
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_meta import cli
from lightning_meta.__main__ import main
from lightning_meta.cli import children
from lightning_meta.cli.children import Ended
from lightning_meta.cli.names import GROUP
from lightning_meta.errors import ConfigError, UsageError
from lightning_meta.reproduce.runs import lock
from lightning_meta.results.compare import main as compare
from tests.cli.test_trainer import ROOT, tiny  # noqa: F401 - a fixture
from tests.modules.test_resume import assert_equal

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
FOLDER = Path("runs/tiny")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Trainings run in this process, which takes less time than to start one; their commands."""
    commands: list[list[str]] = []

    def run(words: Sequence[str], **_: Any) -> Ended:
        assert words[:3] == [sys.executable, "-m", "lightning_meta"]
        commands.append([*words[3:]])
        monkeypatch.setattr("sys.argv", ["lightning_meta", *words[3:]])
        try:
            cli.main([*words[3:]])
        except SystemExit as end:
            return Ended(end.code if isinstance(end.code, int) else 1, 0)
        return Ended(0, 0)

    monkeypatch.setattr(children, "run", run)
    return commands


def fit(*words: str) -> int:
    """Its exit status."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *words])
    return end.value.code


def scores(run: Path) -> list[float]:
    with (run / "test_episodes.csv").open(newline="") as file:
        return [float(row["acc"]) for row in csv.DictReader(file)]


def test_a_group_of_seeds(
    tiny: Path,  # noqa: F811
    here: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit("--config", str(tiny), "--seeds", "0,3") == 0
    printed = capsys.readouterr().out
    summary = json.loads((FOLDER / GROUP).read_text())
    runs = [FOLDER / f"seed_{seed}/version_0" for seed in (0, 3)]
    assert [Path(row["run"]) for row in summary["seeds"]] == runs

    # Each is what the seed is alone.
    cli.main(["fit", "--config", str(tiny), "--seed_everything", "3", "--name", "alone"])
    assert scores(runs[1]) == scores(Path("runs/alone/version_0"))
    assert [json.loads((run / "result.json").read_text())["seed"] for run in runs] == [0, 3]
    assert {json.loads((run / "result.json").read_text())["experiment"] for run in runs} == {"tiny"}

    # Intervals, from the episodes' scores and the published quantile of t for one degree of freedom.
    table = np.array([scores(run) for run in runs])
    assert summary["mean"] == pytest.approx(table.mean(), abs=1e-6)
    of_seeds = 12.7062 * table.mean(1).std(ddof=1) / sqrt(2)
    assert 0 < of_seeds == pytest.approx(summary["ci95_over_seeds"], rel=1e-5)
    of_episodes = 1.96 * table.mean(0).std(ddof=1) / sqrt(7)
    assert summary["ci95_over_episodes"] == pytest.approx(of_episodes, rel=1e-5)
    assert f"| **{100 * table.mean():.2f}** | {100 * of_episodes:.2f} | {100 * of_seeds:.2f} |" in printed

    # Nothing is done twice; a new seed joins.
    before = len(here)
    assert fit("--config", str(tiny), "--seeds=0,3,5") == 0
    assert [words[words.index("--seed_everything") + 1] for words in here[before:]] == ["5"]
    assert len(json.loads((FOLDER / GROUP).read_text())["seeds"]) == 3

    # `compare` takes the group by the name of the experiment.
    capsys.readouterr()
    compare(["tiny", "--out", "out"])
    table = np.array([scores(run) for run in (*runs, FOLDER / "seed_5/version_0")])
    of_seeds = 4.302653 * table.mean(1).std(ddof=1) / sqrt(3)
    of_episodes = 1.96 * table.mean(0).std(ddof=1) / sqrt(7)
    row = f"| `tiny` | 3 | 7 | {100 * table.mean():.2f} ± {100 * of_episodes:.2f} | {100 * of_seeds:.2f} | - |"
    assert row in capsys.readouterr().out


def test_other_settings_are_another_group(tiny: Path, here: list[list[str]]) -> None:  # noqa: F811
    assert fit("--config", str(tiny), "--seeds", "1") == 0
    with pytest.raises(ConfigError, match=r"seed_1/version_0 was trained .*--model.inner_lr 0.1 -> 0.2.*--name NAME"):
        main(["fit", "--config", str(tiny), "--seeds", "0,1", "--model.inner_lr", "0.2"])
    with pytest.raises(ConfigError, match=r"--trainer.max_steps 4 -> 2"):
        main(["fit", "--config", str(tiny), "--seeds", "1", "--trainer.max_steps", "2"])
    assert len(here) == 1, "nothing is begun before all is known to be right"
    assert fit("--config", str(tiny), "--seeds", "1", "--model.inner_lr", "0.2", "--name", "fast") == 0
    assert Path("runs/fast/seed_1/version_0/result.json").is_file()


def test_a_longer_training_goes_on_and_is_tested_again(tiny: Path, here: list[list[str]]) -> None:  # noqa: F811
    for steps in ("4", "6"):
        assert fit("--config", str(tiny), "--seeds", "1", "--trainer.max_steps", steps) == 0
    assert "--ckpt_path" in here[1]
    assert [path.name for path in (FOLDER / "seed_1").glob("version_*")] == ["version_0"]
    assert json.loads((FOLDER / "seed_1/version_0/result.json").read_text())["trained_steps"] == 6


def test_a_failure_does_not_stop_the_others(
    tiny: Path,  # noqa: F811
    here: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    works = children.run
    monkeypatch.setattr(children, "run", lambda words, **_: Ended(3, 0) if words[-1] == "0" else works(words))
    assert fit("--config", str(tiny), "--seeds", "0,1") == 1
    said = capsys.readouterr().out
    assert "seed 0 FAILED: it ended with status 3" in said
    assert "Left: seed 0;" in said
    assert [row["seed"] for row in json.loads((FOLDER / GROUP).read_text())["seeds"]] == [1]


def test_a_seed_that_another_process_trains_is_left_to_it(
    tiny: Path,  # noqa: F811
    here: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with lock(FOLDER / "seed_0") as held:
        assert held is not None
        assert fit("--config", str(tiny), "--seeds", "0,1") == 75
    said = capsys.readouterr().out
    assert "seed 0 is left to the process that trains it" in said
    assert "Left: seed 0;" in said
    assert len(here) == 1
    assert json.loads((FOLDER / GROUP).read_text())["ci95_over_seeds"] is None, "of one seed there is none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,x"], r"--seeds 0,x: give different whole numbers"),
        (["--seeds", "1,1"], r"--seeds 1,1: give different whole numbers"),
        (["--seeds", "1,01"], r"--seeds 1,01: give different whole numbers"),
        (["--seeds", "0,4294967296"], r"--seeds 0,4294967296: .* numbers from 0 to 4294967295"),
        (["--seeds", "1", "--seed_everything", "2"], r"--seed_everything is each seed's own"),
        (["--seeds", "1", "--ckpt_path", "last"], r"--ckpt_path is each seed's own"),
        (["--seeds", "1", "--test_after_fit", "false"], r"leave test_after_fit true"),
        (["--seeds", "1", "--trainer.logger", "false"], r"needs a CSV logger"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, tiny: Path) -> None:  # noqa: F811
    with pytest.raises((UsageError, ConfigError), match=message):
        main(["fit", "--config", str(tiny), *words])
    assert not Path("runs").exists()


def test_seeds_are_checked_without_torch() -> None:
    code = (
        "import sys\nfrom lightning_meta.__main__ import main\n"
        "try: main(['fit', '--config', 'x', '--seeds', 'a,b'])\nexcept Exception as error: print(error)\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout[:13]) == (0, "--seeds a,b: ")


def test_what_a_group_is_resolved_from_is_not_said_twice(
    tiny: Path,  # noqa: F811
    here: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither Lightning's doubts of `args` nor of the seed, which are each training's own."""
    words = ["fit", "--config", str(tiny), "--seeds", "0"]
    monkeypatch.setattr("sys.argv", ["lightning_meta", *words])
    monkeypatch.setattr(children, "run", lambda *_, **__: Ended(1, 0))
    monkeypatch.setattr("pytorch_lightning.cli.seed_everything", lambda *_, **__: pytest.fail("a seed is set"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(SystemExit):
            main(words)
    assert capsys.readouterr().err == ""


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match=r"torchrun has started several"):
        main(["fit", "--config", "x", "--seeds", "1"])


class Stop(pl.Callback):
    """Asks the process that started this one to stop in the middle of the third step, once."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 2 and not Path("stopped").exists():
            Path("stopped").touch()
            os.kill(os.getppid(), signal.SIGTERM)
            while not trainer.checkpoint_callback._signal:
                pass


@pytest.mark.slow
def test_stopped_and_begun_again_it_comes_to_the_same(
    tiny: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In processes of its own; the third of four steps is within an epoch of four."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    text = tiny.read_text().replace("steps_per_epoch: 2", "steps_per_epoch: 4")
    tiny.write_text(text)
    Path("stops.yaml").write_text(
        text.replace("callbacks: [", 'callbacks: [{"class_path": "tests.cli.test_seeds.Stop"}, ')
    )
    assert fit("--config", "stops.yaml", "--seeds", "7,8") == 128 + signal.SIGTERM
    said = "".join(capfd.readouterr())
    assert "Stopped by SIGTERM after step 3." in said
    assert "--ckpt_path" not in said, "which --seeds refuses"
    assert "the same command goes on" in said
    last = Path("runs/stops/seed_7/version_0/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert not Path("runs/stops/seed_8/version_0").exists()
    assert fit("--config", "stops.yaml", "--seeds", "7") == 0
    cli.main(["fit", "--config", str(tiny), "--seed_everything", "7"])
    found, whole = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (last.parents[1], FOLDER / "version_0")
    )
    assert_equal(found, whole, "weights")
    assert scores(last.parents[1]) == scores(FOLDER / "version_0")
