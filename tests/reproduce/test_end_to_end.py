"""A training that `reproduce` stops and begins again gives the numbers of one that was never stopped."""

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_meta import cli
from lightning_meta.reproduce.command import main
from lightning_meta.reproduce.runs import find_runs
from tests.modules.test_resume import ROOT, assert_equal
from tests.reproduce.test_exchange import TINY

STEP = 7  # its end is that of an epoch; test_exchange.py stops within one
STOP_PARENT = """    - class_path: tests.reproduce.test_end_to_end.StopParent
      init_args: {number: NUMBER}
"""


class StopParent(pl.Callback):
    """In the middle of a step: sends the process that started this one a signal, and waits until it asks to stop."""

    def __init__(self, number: int) -> None:
        self.number = number  # 0: none; the time is up some time

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == STEP:
            os.kill(os.getppid(), self.number)
            while not trainer.checkpoint_callback._signal:
                time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words", "status"),
    [
        (signal.SIGTERM, [], 143),
        (signal.SIGINT, [], 130),
        (0, ["--hours", "0.05"], 75),
    ],
    ids=["SIGTERM", "SIGINT", "hours"],
)
def test_stopped_and_begun_again(
    number: int, words: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    also = "# Also:     1_shot: --data.test.k_shot 1\n"
    (experiments := tmp_path / "experiments").mkdir()
    (experiments / "whole.yaml").write_text(TINY)
    stop = STOP_PARENT.replace("NUMBER", str(int(number)))
    (experiments / "stopped.yaml").write_text(also + TINY.replace("  callbacks:\n", f"  callbacks:\n{stop}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    stopped, whole = find_runs([], experiments, Path("runs/reproduce"), experiments / "results", [0], [])

    def reproduce(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(["stopped", "--experiments", str(experiments), "--devices", "cpu", "--threads", "1", *words])
        return end.value.code

    assert reproduce(*words) == status, (stopped.folder / "log.txt").read_text()
    assert torch.load(stopped.last_checkpoint, weights_only=True)["global_step"] == STEP + 1, "no step is lost"
    assert not experiments.joinpath("results").exists()
    assert reproduce() == 0, (stopped.folder / "log.txt").read_text()

    def train_and_test(words: list[str]) -> None:
        monkeypatch.setattr("sys.argv", ["lightning_meta", *words])
        cli.main(words)

    train_and_test(whole.evaluations[0].command("cpu"))
    for part in ("state_dict", "optimizer_states", "global_step"):
        found, expected = (torch.load(run.last_checkpoint, weights_only=True)[part] for run in (stopped, whole))
        assert_equal(found, expected, part)
    metrics = [run.folder / "version_0/metrics.csv" for run in (stopped, whole)]
    assert metrics[0].read_text() == metrics[1].read_text()
    assert len(list(csv.DictReader(metrics[0].open()))) == 12 + 6 + 1, "steps, validations and the test"
    result, expected = stopped.result(), json.loads((whole.folder / "version_0/result.json").read_text())
    assert all(result[key] == expected[key] for key in ("acc", "acc_ci95", "outer_steps", "trained_steps"))

    (_, one_shot), further = stopped.evaluations, json.loads((experiments / "results/stopped_1_shot.json").read_text())
    assert (further["k_shot"], further["trained_steps"], further["outer_steps"]) == (1, 12, result["outer_steps"])
    train_and_test([*whole.evaluations[0].command("cpu", partial=True), *one_shot.extra])
    again = json.loads((whole.folder / "version_1/result.json").read_text())
    assert (further["acc"], further["acc_ci95"]) == (again["acc"], again["acc_ci95"])
