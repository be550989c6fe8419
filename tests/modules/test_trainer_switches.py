"""The Trainer's own switches mean here what they mean in Lightning, or are refused: one test each."""

import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.cli import ReduceLROnPlateau as NamedPlateau
from pytorch_lightning.loggers import CSVLogger
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.backbones import MLP
from lightning_meta.callbacks import EpisodicCheckpoint, RunSummary, StopOnDivergence, Throughput
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule
from tests.conftest import Blobs, blobs

EPOCH, UPDATES = 4, 12


class Diary(pl.Callback):
    """First images of the training meta-batches, and after how many updates validations came, of how many episodes."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.validated: list[int] = []
        self.episodes: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trained.append(batch.support.x.double().sum().item())

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.episodes.append(0)

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.episodes[-1] += len(outputs["loss"])

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.validated += [] if trainer.sanity_checking else [trainer.global_step]


def protonet(**settings: Any) -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(MLP(in_features=256, hidden=(8,)), **settings)


def data(**settings: Any) -> Blobs:
    return blobs(steps_per_epoch=EPOCH, eval_meta_batch_size=2, **settings)


def fit(module: EpisodicModule | None = None, datamodule: Blobs | None = None, **switches: Any) -> Diary:
    """Train with the callbacks of every run and these switches."""
    diary = Diary()
    callbacks = [diary, *switches.pop("callbacks", [])]
    if switches.get("enable_checkpointing", True):
        callbacks += [EpisodicCheckpoint(dirpath=switches.pop("folder", None), save_top_k=0)]
    settings = dict(
        max_steps=UPDATES, max_epochs=-1, accelerator="cpu", inference_mode=False, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[*callbacks, StopOnDivergence(), Throughput()],
    )  # fmt: skip
    diary.trainer = pl.Trainer(**(settings | switches))
    diary.module = module or protonet()
    diary.trainer.fit(diary.module, datamodule=datamodule or data())
    return diary


@pytest.fixture(autouse=True)
def _at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plain(tmp_path: Path) -> Diary:
    return fit()


def same_weights(a: Diary, b: Diary) -> None:
    torch.testing.assert_close(a.module.state_dict(), b.module.state_dict(), rtol=0, atol=0)


# ---- how long, and how often validated ------------------------------------------------------------------------------


def test_without_switches_every_batch_is_new_and_every_epoch_is_validated(plain: Diary) -> None:
    assert len(set(plain.trained)) == UPDATES
    assert plain.validated == [4, 8, 12]
    assert plain.episodes == [5, 5, 5]


@pytest.mark.parametrize("limit", [3, 0.75])
def test_limit_train_batches_makes_every_epoch_so_long(limit: float, plain: Diary) -> None:
    """Of new episodes, and with a validation after each."""
    limited = fit(limit_train_batches=limit)
    assert limited.validated == [3, 6, 9, 12]
    assert limited.trained == plain.trained


@pytest.mark.parametrize("workers", [0, 2])
def test_limit_train_batches_with_workers(workers: int, plain: Diary) -> None:
    assert fit(limit_train_batches=3, datamodule=data(num_workers=workers)).trained == plain.trained


@pytest.mark.parametrize(("overfit", "count"), [(3, 3), (0.5, 2)])
def test_overfit_batches_repeats_the_same_batches(overfit: float, count: int, plain: Diary) -> None:
    again = fit(overfit_batches=overfit)
    assert again.trained == plain.trained[:count] * (UPDATES // count)
    assert again.validated == list(range(count, UPDATES + 1, count))


def test_overfit_batches_goes_on_with_the_same_batches_after_a_resume(tmp_path: Path) -> None:
    whole = fit(overfit_batches=3, folder=tmp_path / "whole")
    first = fit(overfit_batches=3, folder=tmp_path / "stopped", max_steps=7)
    diary = Diary()
    trainer = pl.Trainer(
        max_steps=UPDATES, max_epochs=-1, accelerator="cpu", inference_mode=False, logger=False, overfit_batches=3,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[diary], enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(protonet(), datamodule=data(), ckpt_path=tmp_path / "stopped/last.ckpt")
    assert first.trained + diary.trained == whole.trained


def test_max_epochs_counts_epochs_of_the_data() -> None:
    assert fit(max_steps=-1, max_epochs=2).validated == [4, 8]


def test_of_max_epochs_and_max_steps_the_first_one_ends_training() -> None:
    assert fit(max_steps=7, max_epochs=2).validated == [4]
    assert len(fit(max_steps=9, max_epochs=2).trained) == 8


def test_min_steps_and_min_epochs_outlast_a_stop() -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = True

    assert len(fit(callbacks=[Stop()]).trained) == 1
    assert len(fit(callbacks=[Stop()], min_steps=6).trained) == 6
    assert len(fit(callbacks=[Stop()], min_epochs=2).trained) == 8


def test_max_time_ends_training_with_a_last_checkpoint(tmp_path: Path) -> None:
    class Slow(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            time.sleep(2 * (trainer.global_step == 5))

    stopped = fit(max_time={"seconds": 2}, folder=tmp_path, callbacks=[Slow()])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == len(stopped.trained) <= 6
    assert saved["global_step"] > 0


def test_check_val_every_n_epoch_validates_less_often() -> None:
    assert fit(check_val_every_n_epoch=2).validated == [8]


@pytest.mark.parametrize("interval", [2, 0.5])
def test_val_check_interval_validates_within_epochs(interval: float) -> None:
    assert fit(val_check_interval=interval).validated == [2, 4, 6, 8, 10, 12]


def test_val_check_interval_may_count_over_epochs() -> None:
    assert fit(val_check_interval=5, check_val_every_n_epoch=None).validated == [5, 10]


def test_limit_val_batches_validates_on_the_first_episodes() -> None:
    assert fit(limit_val_batches=2).episodes == [4, 4, 4]


def test_limit_val_batches_0_validates_nothing(plain: Diary) -> None:
    silent = fit(limit_val_batches=0)
    assert silent.validated == []
    same_weights(silent, plain)


def test_limit_test_batches_tests_the_first_episodes_and_says_how_many(tmp_path: Path) -> None:
    module, scores = protonet(), []
    for settings in ({"limit_test_batches": 2}, {"limit_test_batches": 0.5}, {}):
        summary = RunSummary()
        trainer = pl.Trainer(accelerator="cpu", inference_mode=False, logger=False, callbacks=[summary], **settings)
        scores += trainer.test(module, datamodule=data(test_episodes=4 if not settings else 8), verbose=False)
        assert summary.test_episodes == 4
    assert scores[0] == scores[1] == scores[2]


def test_limit_predict_batches_predicts_the_first_episodes() -> None:
    trainer = pl.Trainer(accelerator="cpu", inference_mode=False, logger=False, limit_predict_batches=2)
    assert [len(part) for part in trainer.predict(protonet(), datamodule=data())] == [2, 2]


def test_num_sanity_val_steps_leaves_no_trace(plain: Diary) -> None:
    checked = fit(num_sanity_val_steps=2)
    assert checked.episodes == [4, 5, 5, 5]
    for name in ("val/acc", "val/loss"):
        assert checked.trainer.callback_metrics[name] == plain.trainer.callback_metrics[name]
    same_weights(checked, plain)


def test_fast_dev_run_trains_and_validates_one_batch() -> None:
    dry = fit(fast_dev_run=True)
    assert (len(dry.trained), dry.episodes) == (1, [2])
    assert not list(Path().rglob("*.ckpt"))


def test_reload_dataloaders_every_n_epochs_is_refused() -> None:
    """Each reload would begin with the first episodes again."""
    with pytest.raises(ConfigError, match=r"reload_dataloaders_every_n_epochs would begin .* leave it 0"):
        fit(reload_dataloaders_every_n_epochs=1)


# ---- the update -----------------------------------------------------------------------------------------------------


def step_length(**switches: Any) -> tuple[float, float]:
    """Norm and largest element of the first update of plain SGD with rate 1."""
    module = protonet(optimizer=lambda params: SGD(params, lr=1.0))
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    fit(module, max_steps=1, **switches)
    step = before - torch.cat([p.detach().flatten() for p in module.parameters()])
    return step.norm().item(), step.abs().max().item()


def test_gradient_clip_val_limits_the_norm_of_the_meta_gradient() -> None:
    norm, _ = step_length()
    assert step_length(gradient_clip_val=norm / 3)[0] == pytest.approx(norm / 3, rel=1e-4)
    assert step_length(gradient_clip_val=0)[0] == pytest.approx(norm, rel=1e-6)


def test_gradient_clip_algorithm_value_limits_each_element() -> None:
    _, largest = step_length()
    clipped = step_length(gradient_clip_val=largest / 3, gradient_clip_algorithm="value")
    assert clipped[1] == pytest.approx(largest / 3, rel=1e-4)


def test_accumulate_grad_batches_counts_updates() -> None:
    """See `test_resume.py` for what it computes."""
    summed = fit(accumulate_grad_batches=2)
    assert (len(summed.trained), summed.trainer.global_step, summed.validated) == (24, 12, [4, 8, 12])


@pytest.mark.parametrize("switch", ["detect_anomaly", "deterministic", "benchmark"])
def test_switches_of_torch_change_no_number(switch: str, plain: Diary) -> None:
    try:
        same_weights(fit(**{switch: True}), plain)
    finally:
        torch.use_deterministic_algorithms(False)


def test_detect_anomaly_reaches_second_derivatives() -> None:
    module = MAML(MLP(in_features=256, hidden=(8,)), n_way=3, inner_lr=0.1)
    assert len(fit(module, detect_anomaly=True, max_steps=1).trained) == 1


# ---- what is written ------------------------------------------------------------------------------------------------


def test_log_every_n_steps_thins_out_the_rows(tmp_path: Path) -> None:
    fit(log_every_n_steps=5, logger=CSVLogger(tmp_path, name="", version=""))
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines]
    assert [row["step"] for row in rows if row["train/loss"]] == ["4", "9"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["3", "7", "11"]


@pytest.mark.parametrize("switch", ["enable_progress_bar", "enable_model_summary"])
def test_what_is_shown_changes_no_number(switch: str, plain: Diary) -> None:
    same_weights(fit(**{switch: True}), plain)


def test_without_checkpointing_nothing_is_saved(plain: Diary, tmp_path: Path) -> None:
    (tmp_path / "checkpoints/last.ckpt").unlink()
    same_weights(fit(enable_checkpointing=False), plain)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_default_root_dir_is_where_files_go_without_a_logger(tmp_path: Path) -> None:
    fit(default_root_dir=tmp_path / "here")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.ckpt")] == [Path("here/checkpoints/last.ckpt")]


def test_the_profiler_names_our_steps(tmp_path: Path) -> None:
    profiler = pl.profilers.SimpleProfiler()
    fit(profiler=profiler)
    assert any("ProtoNet.on_train_batch_start" in name for name in profiler.recorded_durations)


def test_barebones_trains_the_same_without_logging_and_checkpoints(plain: Diary, tmp_path: Path) -> None:
    bare = fit(barebones=True, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    same_weights(bare, plain)
    assert not bare.trainer.callback_metrics


def test_enable_autolog_hparams_finds_nothing_to_log(tmp_path: Path) -> None:
    """Loggers get the whole config from the command line."""
    for switch in (True, False):
        fit(enable_autolog_hparams=switch, logger=CSVLogger(tmp_path, name=str(switch), version=""), max_steps=1)
    written = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("True", "False")]
    assert written[0] == written[1]


def test_plugins_such_as_another_checkpoint_writer_are_used(tmp_path: Path) -> None:
    class Noting(TorchCheckpointIO):
        written: ClassVar[list[str]] = []

        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            self.written.append(Path(path).name)
            super().save_checkpoint(checkpoint, path, storage_options)

    fit(plugins=[Noting()], folder=tmp_path)
    assert Noting.written == ["last.ckpt"] * 3


def test_use_distributed_sampler_changes_nothing(plain: Diary) -> None:
    """Episodes are shared out by their numbers, on any number of devices."""
    assert fit(use_distributed_sampler=True).trained == fit(use_distributed_sampler=False).trained == plain.trained


# ---- a schedule that looks at validation ----------------------------------------------------------------------------


class Rates(pl.Callback):
    """Notes the rate of each update."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class Scripted(ProtoNet):
    """A classifier with given validation accuracies and losses, one pair for each validation."""

    script: list[tuple[float, float]]

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            for name, value in zip(("acc", "loss"), self.script.pop(0), strict=True):
                metric = self.eval_metrics["val"][name]
                metric.reset()
                metric.update(torch.tensor([value, value]))
        super().on_validation_epoch_end()


def rates(*script: tuple[float, float], scheduler: Any = None, **switches: Any) -> list[float]:
    """The rate in each epoch, where it is halved as soon as a validation is no better than the best so far."""
    notes = Rates()

    def plateau(optimizer: SGD) -> ReduceLROnPlateau:
        return (scheduler or ReduceLROnPlateau)(optimizer, factor=0.5, patience=0)

    module = Scripted(MLP(in_features=256, hidden=(8,)), optimizer=lambda p: SGD(p, lr=1e-3), lr_scheduler=plateau)
    module.script = list(script)
    fit(module, callbacks=[notes], max_steps=EPOCH * len(script) + 1, **switches)
    return [round(rate * 1e3, 6) for rate in notes.rates[::EPOCH]]


UP = [(0.5, 1.0), (0.6, 1.0), (0.7, 1.0)]
DOWN = [(0.7, 1.0), (0.6, 1.0), (0.5, 1.0)]


def test_parameters_may_have_multiples_of_the_rate() -> None:
    """The longest beginning of a name counts; a schedule is that of all."""

    def moved(multipliers: dict[str, float] | None) -> dict[str, torch.Tensor]:
        optimizer, schedule = partial(SGD, lr=0.1), partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
        settings = {"optimizer": optimizer, "lr_scheduler": schedule, "lr_multipliers": multipliers}
        torch.manual_seed(0)
        module = MAML(MLP(in_features=256, hidden=(8,)), n_way=3, inner_lr=0.01, **settings)
        before = {name: value.detach().clone() for name, value in module.named_parameters()}
        fit(module, max_steps=1)
        (optimizer,) = module.trainer.optimizers
        assert [group["lr"] for group in optimizer.param_groups] == [
            0.05 * by for by in [1.0, *(multipliers or {}).values()]
        ]
        return {name: value.detach() - before[name] for name, value in module.named_parameters()}

    plain = moved(None)
    names = sorted(plain)
    first = names[0]
    multiples = moved({"learner": 0.5, first: 2.0})
    for name in names:
        torch.testing.assert_close(multiples[name], plain[name] * (2.0 if name == first else 0.5))


@pytest.mark.parametrize(
    ("multipliers", "words"),
    [({"head": 2.0}, "head, but no parameter's name begins so; take one of backbone"), ({"backbone": 0.0}, "above 0")],
)
def test_multipliers_of_nothing_or_not_above_0_are_refused(multipliers: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(protonet(lr_multipliers=multipliers))


def test_on_a_plateau_the_rate_falls_when_accuracy_does_not_rise() -> None:
    """Whatever the scheduler's `mode`, which is `min` by default."""
    assert rates(*UP) == [1, 1, 1, 1]
    assert rates(*DOWN) == [1, 1, 0.5, 0.25]


def test_a_plateau_may_look_at_something_else() -> None:
    def of_loss(optimizer: SGD, **settings: Any) -> ReduceLROnPlateau:
        return NamedPlateau(optimizer, monitor="val/loss", mode="max", **settings)

    assert rates((0.5, 3.0), (0.4, 2.0), (0.3, 2.5), scheduler=of_loss) == [1, 1, 1, 0.5]


def test_a_plateau_waits_for_validations() -> None:
    assert rates((0.7, 1.0), (0.6, 1.0), check_val_every_n_epoch=2) == [1, 1, 1]
    with pytest.raises(ConfigError, match=r"looks at val/acc, but limit_val_batches=0"):
        rates((0.7, 1.0), limit_val_batches=0)


def test_a_plateau_that_looks_at_what_is_not_logged_says_what_is() -> None:
    def of_nothing(optimizer: SGD, **settings: Any) -> ReduceLROnPlateau:
        return NamedPlateau(optimizer, monitor="val/accuracy", **settings)

    with pytest.raises(ConfigError, match=r"looks at val/accuracy, which is not logged; there are: .*val/acc"):
        rates((0.5, 1.0), scheduler=of_nothing)


def test_checkpoints_at_the_end_of_an_epoch_know_what_its_validation_did_to_the_rate(tmp_path: Path) -> None:
    def plateau(optimizer: SGD) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

    module = Scripted(MLP(in_features=256, hidden=(8,)), optimizer=lambda p: SGD(p, lr=1.0), lr_scheduler=plateau)
    module.script = list(DOWN)
    fit(module, folder=tmp_path)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25
    assert saved["lr_schedulers"][0]["best"] == pytest.approx(0.7)
