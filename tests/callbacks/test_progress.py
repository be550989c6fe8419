"""What the console says on the way: progress of the whole run, notes once, and nothing of no use."""

import io
import logging
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from lightning_meta import notes
from lightning_meta.algorithms import ProtoNet
from lightning_meta.callbacks import Parameters, Progress, progress
from lightning_meta.callbacks.progress import steps
from lightning_meta.cli import main
from tests.cli.test_trainer import ROOT, tiny  # noqa: F401 - a fixture
from tests.conftest import Blobs, blobs, conv4

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A second passes whenever a training step begins, and three when a validation does."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Ticks(pl.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: object) -> None:
        self.clock.now += 1

    def on_validation_start(self, *args: object) -> None:
        self.clock.now += 3


def fit(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, bar: Progress, **settings: object) -> str:
    """What is written of 8 steps of which every fourth is validated."""
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    monkeypatch.setattr("sys.stderr", stderr)
    trainer = pl.Trainer(
        **(dict(max_steps=8, max_epochs=-1) | settings),  # type: ignore[arg-type]
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=0, inference_mode=False, log_every_n_steps=1, callbacks=[Ticks(clock), bar],
    )  # fmt: skip
    trainer.fit(ProtoNet(conv4()), datamodule=blobs())
    return stderr.getvalue()


def fit_lines(text: str) -> list[str]:
    return re.findall(r"fit [^\r\n\x1b]*", text)


def test_in_a_file_there_is_a_line_after_each_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 seconds for 4 steps and their validation, so 7 for the other 4."""
    first, last = fit_lines(fit(monkeypatch, io.StringIO(), Progress()))
    assert first.startswith("fit 4 / 8 steps, 50 %, 0:00:07, 0:00:07 left, 0.571 steps/s, ")
    assert last.startswith("fit 8 / 8 steps, 100 %, 0:00:14, 0:00:00 left, ")
    assert re.search(r"train/loss [\d.]+, train/acc [\d.]+, val/acc [\d.]+$", first)


def test_in_a_file_there_is_a_line_every_minute_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = fit_lines(fit(monkeypatch, io.StringIO(), Progress(line_seconds=2), limit_val_batches=0))
    assert [line.split(" / ")[0] for line in lines] == ["fit 2", "fit 4", "fit 6", "fit 8"]


def test_a_terminal_has_one_line_that_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = fit(monkeypatch, Terminal(), Progress(refresh_seconds=0))
    lines = fit_lines(text)
    assert [line.split(" / ")[0] for line in dict.fromkeys(line.split(",")[0] for line in lines)] == [
        f"fit {step}" for step in range(1, 9)
    ]
    assert lines[0].startswith("fit 1 / 8 steps, 12 %, 0:00:01, 0:00:07 left, 1 steps/s")
    assert max(map(len, lines)) == 59, "cut to the terminal"
    assert text.count("\rfit ") == len(lines)
    assert text.count("\n") == 1
    assert text.rstrip(" ").endswith("\x1b[K\n"), "what comes after begins a line"


def test_the_length_of_a_training_is_that_of_its_shortest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, last = fit_lines(fit(monkeypatch, io.StringIO(), Progress(), max_steps=-1, max_epochs=3))
    assert last.startswith("fit 12 / 12 steps, 100 %")
    trainer = pl.Trainer(max_steps=-1, max_epochs=-1, logger=False, enable_checkpointing=False, barebones=True)
    assert steps(trainer) == float("inf")


class Chatty(Blobs):
    """Says something in all the moments in which data sets do."""

    def prepare_data(self) -> None:
        logging.getLogger("lightning_meta.datamodules.chatty").info("the checksum is %d", 7)

    def load_source(self, split: str) -> object:  # type: ignore[override]
        self.prepare_data()
        return super().load_source(split)  # type: ignore[arg-type]


def test_a_run_says_everything_once_and_nothing_of_no_use(
    tiny: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = yaml.safe_load(tiny.read_text())
    del config["trainer"]["enable_progress_bar"], config["trainer"]["enable_model_summary"]
    tiny.write_text(yaml.safe_dump(config))
    command = ["fit", "--config", str(tiny), "--data", "tests.callbacks.test_progress.Chatty"]
    main(command)
    said = capsys.readouterr()
    assert said.err.count("note: the checksum is 7\n") == 1
    assert re.search(r"note: ([\d,]+) parameters, \1 trained: learner \(Sequential\)", said.err)
    assert "fit 4 / 4 steps, 100 %" in said.err
    for text in ("v_num", "FLOPs", "Epoch", "Tip", "`weights_only` was not set", "TPU", "Trainer already configured"):
        assert text not in said.err + said.out, text
    assert "test acc" in said.out
    assert "note" not in said.out
    main([*command, "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"])
    said = capsys.readouterr()
    assert said.err.count("note: the checksum is 7\n") == 1, "in each command"
    assert "fit 4 / 4" not in said.err
    assert "parameters" not in said.err


def test_the_callbacks_of_every_run_are_these() -> None:
    """Lightning's own would come in their stead."""
    for name in ("default", "debug"):
        config = yaml.safe_load((ROOT / f"configs/trainer/{name}.yaml").read_text())
        classes = [one["class_path"] for one in config["callbacks"]]
        assert {f"lightning_meta.callbacks.{cls.__name__}" for cls in (Parameters, Progress)} <= set(classes)


def test_notes_are_those_of_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes.set_up()
    log = logging.getLogger("lightning_meta.somewhere")
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    log.info("of the second")
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    log.info("of the first")
    log.warning("of the first")
    log.info("of the first")
    assert capsys.readouterr().err.splitlines() == ["note: of the first", "warning: of the first"]


def test_what_lightning_says_does_not_stand_behind_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    notes.set_up()
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    print("fit 1 / 2 steps", end="", file=terminal)
    rank_zero_info("`Trainer.fit` stopped")
    rank_zero_info("💡 Tip: buy this")
    assert terminal.getvalue() == f"fit 1 / 2 steps{notes.CLEAR}"  # the message goes to the handler of Lightning
