"""A stopped training goes on as if it had never been stopped: bit for bit, whatever the step it stopped at."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_meta.algorithms import LEO, MAML, Reptile
from lightning_meta.callbacks import EpisodicCheckpoint
from lightning_meta.cli import main
from lightning_meta.modules import EpisodicModule
from tests.conftest import blobs, conv4

ROOT = Path(__file__).parents[2]
STEPS, STEPS_PER_EPOCH = 11, 4
STOPS = (2, 4, 5, 8, 10)
PLAIN = partial(MAML, inner_lr=0.1, inner_steps=1)


class Diary(pl.Callback):
    """Every training meta-batch and loss, and the validation loss by global step."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.validations: dict[int, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images.append(torch.cat([batch.support.x, batch.query.x], 1))
        self.losses.append(outputs["loss"].clone())

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.validations[trainer.global_step] = trainer.callback_metrics["val/loss"].clone()


def fit(
    checkpoint: ModelCheckpoint,
    seed: int,
    steps: int = STEPS,
    workers: int = 0,
    ckpt_path: Path | None = None,
    algorithm: Callable[..., EpisodicModule] = PLAIN,
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
        enable_progress_bar=False, enable_model_summary=False, callbacks=[diary, checkpoint],
    )  # fmt: skip
    data = blobs(num_workers=workers, steps_per_epoch=STEPS_PER_EPOCH, val_episodes=2)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
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
def test_noise_in_training_is_repeated(algorithm: Callable[..., EpisodicModule], tmp_path: Path) -> None:
    """The hooks' draws depend on the step, not on what was drawn before the stop."""
    (whole := tmp_path / "whole").mkdir()
    (stopped := tmp_path / "stopped").mkdir()
    diary = fit(EpisodicCheckpoint(dirpath=whole), seed=0, algorithm=algorithm)
    fit(EpisodicCheckpoint(dirpath=stopped), seed=0, steps=6, algorithm=algorithm)
    rest = fit(EpisodicCheckpoint(dirpath=stopped), seed=1, ckpt_path=stopped / "last.ckpt", algorithm=algorithm)
    assert_equal(rest.losses, diary.losses[-len(rest.losses) :], "losses")
    assert len(rest.losses) >= STEPS - 6


# ---- killed ---------------------------------------------------------------------------------------------------------

KILLED_STEPS = 41


def write_config(folder: Path) -> Path:
    """MAML on blobs, saved every 3 steps in epochs of 4: most checkpoints are in the middle of one."""
    config = {
        "name": "killed",
        "test_after_fit": False,
        "trainer": {
            "max_steps": KILLED_STEPS,
            "max_epochs": -1,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}},
            "callbacks": [
                {
                    "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(folder), "every_n_train_steps": 3, "save_last": True},
                }
            ],
        },
        "data": {
            "class_path": "tests.conftest.Blobs",
            "init_args": {"n_way": 3, "n_query": 2, "meta_batch_size": 4, "steps_per_epoch": 4, "val_episodes": 2},
        },
        "model": {
            "class_path": "lightning_meta.algorithms.MAML",
            "init_args": {
                "backbone": {
                    "class_path": "lightning_meta.backbones.Conv4",
                    "init_args": {"image_size": 16, "hidden": 6},
                },
                "inner_lr": 0.1,
            },
        },
    }
    path = folder / "killed.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, f"nothing happened in {seconds} s"
        sleep(0.005)


def kill_in_the_middle(config: Path) -> None:
    command = [sys.executable, "-m", "lightning_meta", "fit", "--config", str(config)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (config.parent / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=config.parent, stdout=log, stderr=log)
    try:
        last = config.parent / "last.ckpt"
        wait_for(lambda: last.exists() or process.poll() is not None, seconds=90)
    finally:
        process.kill()
        status = process.wait()
    assert status == -signal.SIGKILL, (config.parent / "log.txt").read_text()


def test_a_killed_command_resumes_to_the_same_weights(tmp_path: Path) -> None:
    (uninterrupted := tmp_path / "uninterrupted").mkdir()
    (killed := tmp_path / "killed").mkdir()
    config = write_config(killed)
    kill_in_the_middle(config)
    stopped = torch.load(killed / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < stopped < KILLED_STEPS - 3

    expected = main(["fit", "--config", str(write_config(uninterrupted))])
    cli = main(["fit", "--config", str(config), "--ckpt_path", str(killed / "last.ckpt"), "--seed_everything", "99"])
    assert cli.trainer.global_step == expected.trainer.global_step == KILLED_STEPS
    assert_equal(cli.model.state_dict(), expected.model.state_dict())
    assert_equal(cli.trainer.optimizers[0].state_dict(), expected.trainer.optimizers[0].state_dict())
