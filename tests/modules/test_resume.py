"""A stopped training goes on as if it had never been stopped: bit for bit, whatever the step it stopped at."""

import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_meta.algorithms import LEO, MAML, MAMLPlusPlus, Reptile
from lightning_meta.callbacks import EpisodicCheckpoint, ReplayStep
from lightning_meta.cli import main
from lightning_meta.modules import EpisodicModule
from tests.conftest import blobs, conv4

ROOT = Path(__file__).parents[2]
STEPS, STEPS_PER_EPOCH = 11, 4
STOPS = (2, 4, 5, 8, 10)
PLAIN = partial(MAML, inner_lr=0.1, inner_steps=1)


class Diary(pl.Callback):
    """Every training meta-batch, loss and seed of its noise, and the validation loss by global step."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.seeds: list[int] = []
        self.validations: dict[int, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images.append(torch.cat([batch.support.x, batch.query.x], 1))
        self.losses.append(outputs["loss"].clone())
        self.seeds.append(torch.initial_seed())

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.validations[trainer.global_step] = trainer.callback_metrics["val/loss"].clone()


def fit(
    checkpoint: ModelCheckpoint,
    seed: int,
    steps: int = STEPS,
    workers: int = 0,
    ckpt_path: Path | None = None,
    algorithm: Callable[..., EpisodicModule] = PLAIN,
    callbacks: Sequence[pl.Callback] = (),
    accumulate: int = 1,
    **data: Any,
) -> Diary:
    torch.manual_seed(seed)
    module = algorithm(
        conv4(),
        n_way=3,
        optimizer=lambda params: torch.optim.Adam(params, lr=0.01),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5),
    )
    diary = Diary()
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", inference_mode=False, logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[diary, *callbacks, checkpoint],
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    settings = {"num_workers": workers, "steps_per_epoch": STEPS_PER_EPOCH, "val_episodes": 2} | data
    trainer.fit(module, datamodule=blobs(**settings), ckpt_path=ckpt_path)
    return diary


def train(folder: Path, workers: int, seed: int, ckpt_path: Path | None = None) -> tuple[dict[str, Any], Diary]:
    """Train to `STEPS`, saving every step; return the final checkpoint and what happened."""
    diary = fit(
        ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1), seed, STEPS, workers, ckpt_path
    )
    return torch.load(folder / f"step={STEPS}.ckpt", weights_only=True), diary


def assert_equal(found: Any, expected: Any, where: str = "checkpoint") -> None:
    """Nested containers are equal, tensors bit for bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert found == expected, where


@pytest.fixture(scope="module", params=[0, 2], ids=["0-workers", "2-workers"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Any, Diary]:
    """Workers, folder, final checkpoint and diary of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, folder, *train(folder, request.param, seed=0)


def test_the_uninterrupted_training_is_what_it_should_be(whole: tuple[int, Path, Any, Diary]) -> None:
    _, folder, final, diary = whole
    assert final["global_step"] == len(diary.losses) == STEPS
    assert sorted(diary.validations) == [4, 8]
    assert len({images.sum().item() for images in diary.images}) == STEPS, "every meta-batch is new"
    start = torch.load(folder / "step=1.ckpt", weights_only=True)["state_dict"]
    assert all(not torch.equal(final["state_dict"][name], start[name]) for name in start if "weight" in name)


@pytest.mark.parametrize("stop", STOPS)
def test_a_resumed_training_equals_the_uninterrupted_one(
    stop: int, whole: tuple[int, Path, Any, Diary], tmp_path: Path
) -> None:
    workers, folder, final, diary = whole
    resumed, rest = train(tmp_path, workers, seed=1000 + stop, ckpt_path=folder / f"step={stop}.ckpt")
    assert_equal(rest.images, diary.images[stop:], "episodes")
    assert_equal(rest.losses, diary.losses[stop:], "losses")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_equal(resumed[part], final[part], part)
    # With `every_n_train_steps` Lightning saves an epoch's last step before its validation and does not make up for it.
    later = {step: loss for step, loss in diary.validations.items() if step > stop}
    assert_equal({step: loss for step, loss in rest.validations.items() if step > stop}, later, "validations")


def test_the_standard_checkpoint_neither_repeats_nor_forgets_a_validation(tmp_path: Path) -> None:
    """It is saved after a validation, with the best score so far."""
    (whole := tmp_path / "whole").mkdir()
    (stopped := tmp_path / "stopped").mkdir()
    best, resumed = EpisodicCheckpoint(dirpath=whole), EpisodicCheckpoint(dirpath=stopped)
    diary = fit(best, seed=0)
    first = fit(EpisodicCheckpoint(dirpath=stopped), seed=0, steps=6)
    rest = fit(resumed, seed=1, ckpt_path=stopped / "last.ckpt")
    assert (sorted(first.validations), sorted(rest.validations)) == ([4], [8])
    assert_equal(first.validations | rest.validations, diary.validations)
    assert resumed.best_model_score is not None
    assert torch.equal(resumed.best_model_score, best.best_model_score)
    assert Path(resumed.best_model_path).name == Path(best.best_model_path).name


@pytest.mark.parametrize(
    "algorithm",
    [partial(LEO, latent_dim=4, inner_steps=1), partial(Reptile, inner_batch_size=2, inner_steps=2)],
    ids=["drawn codes", "shuffled mini-batches"],
)
def test_noise_in_training_is_repeated(
    algorithm: Callable[..., EpisodicModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hooks' draws depend on the step and the training's seed, not on what was drawn before the stop."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    (whole := tmp_path / "whole").mkdir()
    (stopped := tmp_path / "stopped").mkdir()
    diary = fit(EpisodicCheckpoint(dirpath=whole), seed=0, algorithm=algorithm)
    fit(EpisodicCheckpoint(dirpath=stopped), seed=0, steps=6, algorithm=algorithm)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    rest = fit(EpisodicCheckpoint(dirpath=stopped), seed=1, ckpt_path=stopped / "last.ckpt", algorithm=algorithm)
    assert_equal(rest.losses, diary.losses[-len(rest.losses) :], "losses")
    assert len(rest.losses) >= STEPS - 6


@pytest.mark.parametrize(
    "algorithm",
    [
        partial(Reptile, inner_batch_size=2, inner_steps=2, carry_inner_state=True),
        partial(MAMLPlusPlus, inner_lr=0.1, inner_steps=1, per_step_statistics=True),
    ],
    ids=["state of the inner optimizer", "averages"],
)
@pytest.mark.parametrize("stop", [2, 5])
def test_what_tasks_leave_to_the_next_is_in_every_checkpoint(
    algorithm: Callable[..., EpisodicModule], stop: int, tmp_path: Path
) -> None:
    """Buffers that the hooks return, in the middle of an epoch too."""
    every_step = partial(ModelCheckpoint, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(every_step(tmp_path / "whole"), seed=0, algorithm=algorithm)
    checkpoint = tmp_path / "whole" / f"step={stop}.ckpt"
    fit(every_step(tmp_path / "rest"), seed=1, ckpt_path=checkpoint, algorithm=algorithm)
    states = [
        torch.load(path, weights_only=True)["state_dict"]
        for path in (checkpoint, *(tmp_path / run / f"step={STEPS}.ckpt" for run in ("whole", "rest")))
    ]
    assert_equal(states[2], states[1])
    moved = [name for name in states[0] if "inner_state" in name or "norm." in name]
    assert moved
    assert not any(torch.equal(states[0][name], states[1][name]) for name in moved if states[1][name].count_nonzero())


# ---- several meta-batches for an outer update ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diary]:
    """Folder and diary of a training that accumulates two meta-batches for an outer update."""
    folder = tmp_path_factory.mktemp("accumulated")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*steps are not validated.*")
        return folder, fit(EpisodicCheckpoint(dirpath=folder), seed=0, steps=8, accumulate=2)


def test_accumulating_meta_batches_is_training_on_their_union(accumulated: tuple[Path, Diary], tmp_path: Path) -> None:
    """The same weights, and the same validations after the same outer updates."""
    folder, diary = accumulated
    union = fit(EpisodicCheckpoint(dirpath=tmp_path), seed=0, steps=8, meta_batch_size=8)
    assert len(diary.losses) == 16
    images = [torch.cat(pair) for pair in zip(diary.images[::2], diary.images[1::2], strict=True)]
    assert_equal(images, union.images, "episodes")
    found, expected = (torch.load(path / "last.ckpt", weights_only=True) for path in (folder, tmp_path))
    assert found["global_step"] == expected["global_step"] == 8
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=1e-4, atol=1e-5)
    assert sorted(diary.validations) == sorted(union.validations) == [4, 8]
    torch.testing.assert_close(diary.validations, union.validations, rtol=1e-4, atol=1e-5)


def test_noise_belongs_to_the_meta_batch_not_to_the_outer_update(
    accumulated: tuple[Path, Diary], tmp_path: Path
) -> None:
    _, diary = accumulated
    single = fit(EpisodicCheckpoint(dirpath=tmp_path), seed=0, steps=16)
    assert diary.seeds == single.seeds
    assert len(set(diary.seeds)) == 16


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_training_that_accumulates_is_resumed_exactly(
    stop: int, accumulated: tuple[Path, Diary], tmp_path: Path
) -> None:
    """Also when a signal comes in the middle of an outer update."""
    folder, diary = accumulated
    with pytest.raises(SystemExit):
        killed = KillAt(stop - 1, signal.SIGTERM, hook="train_batch_start")
        fit(EpisodicCheckpoint(dirpath=tmp_path), seed=0, steps=8, accumulate=2, callbacks=[killed])
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == stop
    rest = fit(EpisodicCheckpoint(dirpath=tmp_path), seed=9, steps=8, accumulate=2, ckpt_path=last)
    assert_equal(rest.losses, diary.losses[2 * stop :], "losses")
    assert rest.seeds == diary.seeds[2 * stop :]
    found, expected = (torch.load(path / "last.ckpt", weights_only=True) for path in (tmp_path, folder))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_equal(found[part], expected[part], part)
    assert_equal(rest.validations, {step: v for step, v in diary.validations.items() if step > stop}, "validations")


def test_a_replay_plays_every_meta_batch_of_the_step(
    accumulated: tuple[Path, Diary], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, diary = accumulated
    with pytest.raises(SystemExit):
        fit(EpisodicCheckpoint(dirpath=tmp_path), seed=0, steps=8, accumulate=2, callbacks=[ReplayStep(5)])
    printed = capsys.readouterr().out
    for batch in (10, 11):
        part = printed.partition(f"global step 5, meta-batch {batch}:")[2].partition("gradient")[0]
        losses = {int(i): float(loss) for i, loss in re.findall(r"episode (\d+): loss ([\w.+-]+),", part)}
        assert list(losses) == list(range(4 * batch, 4 * batch + 4))
        assert fmean(losses.values()) / 2 == pytest.approx(diary.losses[batch].item(), rel=1e-4)  # as Lightning has it


# ---- killed ---------------------------------------------------------------------------------------------------------

KILLED_STEPS = 41


class KillAt(pl.Callback):
    """The first rank sends a signal to itself, or to its process group, in the middle of a training step."""

    def __init__(self, step: int, number: int, group: bool = False, hook: str = "before_optimizer_step") -> None:
        self.step, self.number, self.group = step, number, group
        setattr(self, f"on_{hook}", self.kill)

    def kill(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and trainer.is_global_zero:
            (os.killpg if self.group else os.kill)(os.getpgrp() if self.group else os.getpid(), self.number)
            time.sleep(0.5 * self.group)  # for the others to die of it


def write_config(folder: Path, name: str, devices: int, *kill: int, workers: int = 0) -> Path:
    """MAML on blobs in folder/runs, with `last.ckpt` every 3 steps in epochs of 4: most are in the middle of one."""
    callbacks = [{"class_path": "lightning_meta.callbacks.EpisodicCheckpoint", "init_args": {"every_n_train_steps": 3}}]
    if kill:
        arguments = {"step": kill[0], "number": int(kill[1]), "group": workers > 0}
        callbacks.append({"class_path": "tests.modules.test_resume.KillAt", "init_args": arguments})
    config = {
        "test_after_fit": False,
        "trainer": {
            "max_steps": KILLED_STEPS, "max_epochs": -1, "accelerator": "cpu", "num_sanity_val_steps": 0,
            "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
            "devices": devices, "strategy": "ddp" if devices > 1 else "auto", "callbacks": callbacks,
            "logger": {
                "class_path": "pytorch_lightning.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder / "runs"), "name": ""},
            },
        },
        "data": {
            "class_path": "tests.conftest.Blobs",
            "init_args": {
                "n_way": 3, "n_query": 2, "meta_batch_size": 4, "steps_per_epoch": 4, "val_episodes": 3,
                "num_workers": workers,
            },
        },
        "model": {
            "class_path": "lightning_meta.algorithms.MAML",
            "init_args": {
                "backbone": {
                    "class_path": "lightning_meta.backbones.Conv4",
                    "init_args": {"image_size": 16, "hidden": 6},
                },
                "inner_lr": 0.1,
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.StepLR",
                    "init_args": {"step_size": 7, "gamma": 0.5},
                },
            },
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run_process(config: Path, *args: str) -> int:
    """Exit status of `fit`; whatever the process leaves behind is killed."""
    folder = config.parent
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_meta", "fit", "--config", str(config), *args],
            env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(timeout=500)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("devices", "number"),
    [
        (1, signal.SIGKILL),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_killed_command_resumes_to_the_same_end(devices: int, number: signal.Signals, tmp_path: Path) -> None:
    """Weights, optimizer, schedule, position in the episodes, and every logged number."""
    step = random.Random(number + devices).randrange(5, KILLED_STEPS - 5)
    status = run_process(write_config(tmp_path, "killed", devices, step, number))
    log = (tmp_path / "log.txt").read_text()
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number), log
    last = tmp_path / "runs" / "killed" / "version_0" / "checkpoints" / "last.ckpt"
    stopped = torch.load(last, weights_only=True)["global_step"]
    if number == signal.SIGTERM:
        assert stopped == step + 1, "no step is lost"
    else:
        assert step - 3 < stopped <= step, "at most those since the last checkpoint are lost"

    for name, resume in {"whole": [], "killed": ["--ckpt_path", str(last), "--seed_everything", "99"]}.items():
        config = write_config(tmp_path, name, devices)
        if devices == 1:
            main(["fit", "--config", str(config), *resume])
        else:
            assert run_process(config, *resume) == 0, (tmp_path / "log.txt").read_text()
    whole = tmp_path / "runs" / "whole" / "version_0"
    found, expected = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (last.parents[1], whole)
    )
    assert expected["global_step"] == KILLED_STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_equal(found[part], expected[part], part)
    loops = (checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] for checkpoint in (found, expected))
    assert next(loops) == next(loops) == [{"position": KILLED_STEPS}]
    metrics = [(run / "metrics.csv").read_text() for run in (last.parents[1], whole)]
    assert metrics[0] == metrics[1]
    assert len(metrics[0].splitlines()) == 1 + KILLED_STEPS + KILLED_STEPS // 4, "steps and validations"


@pytest.mark.parametrize(
    ("devices", "number"),
    [
        (1, signal.SIGTERM),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_all_processes_of_a_run_loses_no_step(devices: int, number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C in a terminal, and many schedulers: the workers that draw episodes get it too."""
    status = run_process(write_config(tmp_path, "killed", devices, 5, number, workers=2))
    log = (tmp_path / "log.txt").read_text()
    assert status == 128 + number, log
    last = Path("runs/killed/version_0/checkpoints/last.ckpt")
    assert torch.load(tmp_path / last, weights_only=True)["global_step"] == 6
    assert f"Stopped by {number.name} after step 6; to go on, add to the command: --ckpt_path" in log
    assert str(last) in log
    assert "Traceback" not in log
