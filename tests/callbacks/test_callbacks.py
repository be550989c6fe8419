"""Callbacks in real, tiny runs of the Trainer."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional as F

from lightning_meta import reports
from lightning_meta.algorithms import MAML, MAMLRL
from lightning_meta.backbones import MLP
from lightning_meta.callbacks import EpisodeTable, RunSummary, StopOnDivergence, Throughput
from lightning_meta.datamodules.functions.sinusoid import Sinusoid
from lightning_meta.errors import DivergenceError
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.worlds import Continuous
from tests.algorithms.rollout_cases import navigation

EPISODES = 7  # not a multiple of the batch of 3: the last one is smaller


def sinusoid(**kwargs: Any) -> Sinusoid:
    defaults = {"meta_batch_size": 2, "steps_per_epoch": 5, "val_episodes": 2, "test_episodes": EPISODES}
    return Sinusoid(**(defaults | {"eval_meta_batch_size": 3} | kwargs))


def maml(**kwargs: Any) -> MAML:
    pl.seed_everything(0, verbose=False)
    return MAML(MLP(hidden=(8,)), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE(), **kwargs)


def trainer(folder: Path, *callbacks: pl.Callback, **kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": 5,
            "inference_mode": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "logger": CSVLogger(folder, name="", version=""),
            "callbacks": list(callbacks),
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        | kwargs
    )


def read(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_episode_table_holds_the_numbers_behind_the_metric(tmp_path: Path) -> None:
    table = EpisodeTable()
    run, module, data = trainer(tmp_path, table), maml(), sinusoid()
    run.test(module, data, verbose=False)
    (logged,) = run.test(module, data, verbose=False)  # the second test replaces the rows of the first
    rows = read(tmp_path / "test_episodes.csv")
    assert table.path == tmp_path / "test_episodes.csv"
    assert list(rows[0]) == ["episode", "mse", "r2", "loss"]
    assert [row["episode"] for row in rows] == list(range(EPISODES))
    for name in ("mse", "loss"):
        values = torch.tensor([row[name] for row in rows])
        assert logged[f"test/{name}"] == pytest.approx(values.mean().item(), rel=1e-6)
        ci95 = 1.96 * values.std().item() / EPISODES**0.5
        assert logged[f"test/{name}_ci95"] == pytest.approx(ci95, rel=1e-5)


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    callbacks: list[pl.Callback] = [reports.TestReport(), EpisodeTable(), Throughput()]
    dry = trainer(tmp_path, *callbacks, StopOnDivergence(), fast_dev_run=True)
    module, data = maml(), sinusoid()
    dry.fit(module, data)
    dry.test(module, data, verbose=False)
    assert not list(tmp_path.rglob("*.*"))


def test_throughput_leaves_validation_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("lightning_meta.callbacks.throughput.perf_counter", lambda: now)

    class Timed(MAML):
        """A training step takes 1 s, a validation step 1000 s."""

        def training_step(self, *args: Any) -> Tensor:
            nonlocal now
            now += 1
            return super().training_step(*args)

        def validation_step(self, *args: Any) -> dict[str, Tensor]:
            nonlocal now
            now += 1000
            return super().validation_step(*args)

    module = Timed(MLP(hidden=(8,)), n_way=1, loss_fn=F.mse_loss, metric=EpisodicMSE())
    throughput = Throughput()
    run = trainer(tmp_path, throughput, max_steps=12, log_every_n_steps=4)
    run.fit(module, sinusoid())  # validates after every 5 steps, so within the windows of 4
    assert (throughput.episodes, throughput.seconds, throughput.mean) == (24, 12, 2)
    assert run.callback_metrics["train/episodes_per_s"] == 2


def test_throughput_is_that_of_whole_outer_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two meta-batches that an update accumulates, the first takes 1 s and the second 3 s."""
    now = 0.0
    monkeypatch.setattr("lightning_meta.callbacks.throughput.perf_counter", lambda: now)

    class Timed(MAML):
        def training_step(self, *args: Any) -> Tensor:
            nonlocal now
            now += 1 + 2 * (self.batch_number % 2)
            return super().training_step(*args)

    module = Timed(MLP(hidden=(8,)), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE())
    trainer(tmp_path, Throughput(), max_steps=10, accumulate_grad_batches=2).fit(module, sinusoid())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rates = [float(row["train/episodes_per_s"] or "nan") for row in csv.DictReader(file) if row["train/loss"]]
    assert rates == [4 / 4] * 10  # of two episodes each


def test_throughput_counts_the_steps_of_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta-batch of 4 tasks takes 2 s: of 3 rounds, each of 3 trajectories of 6 steps."""
    now = 0.0
    monkeypatch.setattr("lightning_meta.callbacks.throughput.perf_counter", lambda: now)

    class Timed(MAMLRL):
        def training_step(self, *args: Any) -> Tensor:
            nonlocal now
            now += 2
            return super().training_step(*args)

    run = trainer(tmp_path, Throughput(), max_steps=2, log_every_n_steps=1)
    run.fit(Timed(2, Continuous(2), hidden=[4]), navigation())
    assert run.callback_metrics["train/episodes_per_s"] == 2
    assert run.callback_metrics["train/world_steps_per_s"] == 2 * 3 * 3 * 6


class Diverging(MAML):
    """The loss (or only its gradient) of step 3 is NaN."""

    kind = "loss"

    def training_step(self, *args: Any) -> Tensor:
        loss = super().training_step(*args)
        if self.global_step != 3:
            return loss
        zero = 0 * next(self.parameters()).sum()
        return loss * torch.nan if self.kind == "loss" else loss + zero.square().sqrt()  # 0 / 0 in the derivative


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_divergence_names_step_and_episodes_and_keeps_the_checkpoint_intact(tmp_path: Path, kind: str) -> None:
    module = Diverging(MLP(hidden=(8,)), n_way=1, loss_fn=F.mse_loss, metric=EpisodicMSE())
    module.kind = kind
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with pytest.raises(DivergenceError) as error:
        trainer(tmp_path, checkpoints, StopOnDivergence()).fit(module, sinusoid(seed=9))
    message = str(error.value)
    assert "at global step 3." in message
    assert "episodes [6, 7], data seed 9" in message
    assert f"intact: {tmp_path / 'step=3.ckpt'}" in message
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]
    state = torch.load(tmp_path / "step=3.ckpt", weights_only=False)["state_dict"]
    assert all(weights.isfinite().all() for weights in state.values())


def test_an_evaluation_that_diverges_says_so(tmp_path: Path) -> None:
    module = MAML(MLP(hidden=(8,)), n_way=1, inner_lr=1e9, inner_steps=9, loss_fn=F.mse_loss, metric=EpisodicMSE())
    with pytest.warns(UserWarning, match="test/mse is nan, since it is so in some episodes; .* a lower model.inner_lr"):
        trainer(tmp_path).test(module, sinusoid())


def test_divergence_on_an_accelerator_is_looked_for_now_and_then() -> None:
    stop = StopOnDivergence()
    run: Any = SimpleNamespace(
        log_every_n_steps=4,
        accumulate_grad_batches=1,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision: decision),
        train_dataloader=None,
        checkpoint_callbacks=[],
        ckpt_path=None,
        log_dir=None,
    )
    module: Any = SimpleNamespace(device=torch.device("cuda"))
    losses = [1.0, 1.0, 1.0, 1.0, 1.0, torch.inf, torch.nan, torch.nan]
    with pytest.raises(DivergenceError, match=r"loss is inf at global step 5\."):
        for step, loss in enumerate(losses):
            run.global_step = step
            stop.on_train_batch_start(run, module, None, step)
            stop.on_train_batch_end(run, module, {"loss": torch.tensor(loss)}, None, step)
    assert step == 7  # not before the second look


def test_seconds_of_training_travel_with_the_checkpoint() -> None:
    first, resumed = RunSummary(), RunSummary()
    first._fit_seconds = 12.5
    resumed.load_state_dict(first.state_dict())
    assert resumed.fit_seconds == 12.5
    resumed.on_fit_start(None, None)
    assert resumed.fit_seconds > 12.5
    resumed.on_fit_end(None, None)
    assert resumed.fit_seconds == resumed.state_dict()["fit_seconds"] > 12.5
