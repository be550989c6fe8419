"""Checkpoints: when they are written, that a signal writes one more, and that none is ever half written."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_meta.callbacks import EpisodicCheckpoint
from lightning_meta.callbacks.checkpoint import AtomicCheckpointIO
from lightning_meta.errors import UserError
from tests.modules.test_resume import STEPS, Diary, assert_equal, fit


class Recorder(EpisodicCheckpoint):
    """Notes the global step and the name of each file when it has been written."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.saved: list[tuple[int, str]] = []

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.saved.append((trainer.global_step, Path(filepath).name))


class Sender(pl.Callback):
    """Sends its own process a signal, in the middle of a training step or of a validation."""

    def __init__(self, number: signal.Signals, hook: str, steps_done: int, times: int = 1) -> None:
        self.number, self.moment, self.times = number, (hook, steps_done), times

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.moment == ("step", trainer.global_step):
            for _ in range(self.times):
                signal.raise_signal(self.number)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self.moment == ("validation", trainer.global_step):
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diary]:
    """Folder and diary of an uninterrupted training, in epochs of 4 steps."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(EpisodicCheckpoint(dirpath=folder), seed=0)


def load(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def test_the_last_one_is_written_after_every_epoch_the_best_only_when_it_is_better(tmp_path: Path) -> None:
    recorder = Recorder(dirpath=tmp_path, monitor="val/loss", mode="max")
    diary = fit(recorder, seed=0)
    assert diary.validations[8] < diary.validations[4], "the second epoch must be the worse for this test"
    assert recorder.saved == [(4, "best-step=4.ckpt"), (4, "last.ckpt"), (8, "last.ckpt"), (STEPS, "last.ckpt")]


def test_within_an_epoch_the_last_one_is_written_every_so_many_steps(tmp_path: Path) -> None:
    recorder = Recorder(dirpath=tmp_path, every_n_train_steps=2, monitor="val/loss", mode="max")
    fit(recorder, seed=0)
    # At the end of an epoch it waits for the validation; a score of that belongs to no later weights.
    assert [step for step, name in recorder.saved if name == "last.ckpt"] == [2, 4, 6, 8, 10, STEPS]
    assert [step for step, name in recorder.saved if name != "last.ckpt"] == [4]


@pytest.mark.parametrize(
    ("number", "hook", "steps_done", "saved"),
    [
        (signal.SIGTERM, "step", 5, 6),
        (signal.SIGINT, "step", 2, 3),
        (signal.SIGHUP, "validation", 8, 8),
        (signal.SIGUSR1, "step", 7, 8),  # the last of an epoch
        (signal.SIGTERM, "validation", 4, 4),
        (signal.SIGUSR1, "step", STEPS - 1, STEPS),  # the last of all
    ],
)
def test_a_signal_writes_a_checkpoint_from_which_training_goes_on_exactly(
    number: signal.Signals, hook: str, steps_done: int, saved: int, whole: tuple[Path, Diary], tmp_path: Path
) -> None:
    folder, diary = whole
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        sender = Sender(number, hook, steps_done)
        fit(EpisodicCheckpoint(dirpath=tmp_path), seed=0, callbacks=[sender])
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == handler
    assert load(tmp_path)["global_step"] == saved

    resumed = EpisodicCheckpoint(dirpath=tmp_path)
    rest = fit(resumed, seed=99, ckpt_path=tmp_path / "last.ckpt")
    assert_equal(rest.images, diary.images[saved:], "episodes")
    assert_equal(rest.losses, diary.losses[saved:], "losses")
    assert_equal(rest.validations, {step: v for step, v in diary.validations.items() if step > saved}, "validations")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(load(tmp_path)[part], load(folder)[part], part)
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(folder)), "the same best one, and no last-v1.ckpt"


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(EpisodicCheckpoint(dirpath=tmp_path), seed=0, callbacks=[Sender(signal.SIGINT, "step", 5, times=2)])
    assert isinstance(stop.value.__context__, KeyboardInterrupt)
    assert load(tmp_path)["global_step"] == 4, "of the epoch before"
    assert "Ctrl-C once more stops at once" in capfd.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As SIGHUP under nohup: the training goes on when the terminal is closed."""
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        diary = fit(EpisodicCheckpoint(dirpath=tmp_path), seed=0, callbacks=[Sender(signal.SIGHUP, "step", 5)])
    finally:
        signal.signal(signal.SIGHUP, handler)
    assert len(diary.losses) == STEPS


# ---- half written ---------------------------------------------------------------------------------------------------


def test_a_kill_while_writing_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, save = tmp_path / "last.ckpt", AtomicCheckpointIO().save_checkpoint
    save({"step": 1}, path)
    monkeypatch.setattr(os, "fsync", lambda file: os.kill(os.getpid(), signal.SIGKILL))  # all is written, in vain
    child = os.fork()
    if child == 0:
        save({"step": 2}, path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert load(tmp_path) == {"step": 1}
    monkeypatch.undo()
    save({"step": 3}, path)
    assert load(tmp_path) == {"step": 3}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_full_disk_ends_training_with_one_message_and_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_after_three(file: int, written: list[int] = []) -> None:  # noqa: B006 - it counts the calls
        written.append(file)
        if len(written) > 3:  # last.ckpt of step 2, and both of step 4
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_after_three)
    with pytest.raises(UserError) as error:
        fit(EpisodicCheckpoint(dirpath=tmp_path, every_n_train_steps=2), seed=0, steps=8)
    for text in (f"cannot write checkpoint {tmp_path}", "No space left on device", " bytes", " are free"):
        assert text in str(error.value)
    assert f"The last good checkpoint is {tmp_path / 'last.ckpt'}" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["best-step=4.ckpt", "last.ckpt"]
    assert load(tmp_path)["global_step"] == 4
