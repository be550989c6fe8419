"""The Lightning seam: checks at setup, injected collaborators, evaluation, logging, checkpoints from Python."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Adam

from lightning_meta.algorithms import LEO, MAML, Baseline, ProtoNet, Reptile
from lightning_meta.backbones import MLP, FittedBackbone
from lightning_meta.core import SGD, Batch, Episode, Momentum, RMSprop, TaskOutput
from lightning_meta.core import Adam as InnerAdam
from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import Sinusoid
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicAccuracy, EpisodicMSE
from lightning_meta.modules.learned_rates import LearnedRates
from tests.conftest import SIZE, blobs, conv4, meta_gradient, random_episodes, sinusoids


def trainer(**overrides: Any) -> pl.Trainer:
    settings: dict[str, Any] = dict(
        max_steps=1, accelerator="cpu", inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    return pl.Trainer(**(settings | overrides))


def maml(**overrides: Any) -> MAML:
    torch.manual_seed(0)
    return MAML(conv4(), **(dict(n_way=3, inner_lr=0.1, inner_steps=2) | overrides))


# ---- checks at setup ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_inference_mode_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="inference_mode=False"):
        getattr(trainer(inference_mode=True), entry)(maml(), datamodule=blobs())


def setup_under(strategy: Strategy, precision: str = "32-true") -> None:
    fake = SimpleNamespace(
        strategy=strategy, precision=precision, validate_loop=SimpleNamespace(inference_mode=False), datamodule=None,
        callbacks=[], gradient_clip_val=None, accumulate_grad_batches=1, check_val_every_n_epoch=1,
        val_check_interval=1.0,
        reload_dataloaders_every_n_epochs=0,
    )  # fmt: skip
    module = maml()
    module.trainer = fake
    module.setup("fit")


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_shard_parameters_are_refused(strategy: type[Strategy]) -> None:
    sharding = object.__new__(strategy) if strategy is DeepSpeedStrategy else strategy()  # needs a package of its own
    with pytest.raises(ConfigError, match=rf"{strategy.__name__}.*use strategy: ddp"):
        setup_under(sharding)


def test_strategies_with_whole_parameters_are_accepted() -> None:
    setup_under(DDPStrategy())
    setup_under(SingleDeviceStrategy())


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "transformer-engine-float16"])
def test_float16_is_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"precision={precision}.*use bf16-mixed or 32-true"):
        setup_under(SingleDeviceStrategy(), precision)


def test_a_changing_number_of_accumulated_batches_is_refused() -> None:
    run = trainer(callbacks=[GradientAccumulationScheduler({1: 2})])
    with pytest.raises(ConfigError, match=r"set trainer.accumulate_grad_batches"):
        run.fit(maml(), datamodule=blobs())


def test_input_shape_mismatch_names_both_shapes() -> None:
    module = MAML(conv4(image_size=28), n_way=3)
    with pytest.raises(ConfigError, match=r"\(1, 28, 28\).*Blobs has \(1, 16, 16\)"):
        trainer().fit(module, datamodule=blobs())


def test_a_flat_backbone_takes_images_of_as_many_values() -> None:
    trainer().fit(ProtoNet(MLP(in_features=256, hidden=(4,))), datamodule=blobs())
    with pytest.raises(ConfigError, match=r"\(100,\).*\(1, 16, 16\)"):
        trainer().fit(ProtoNet(MLP(in_features=100, hidden=(4,))), datamodule=blobs())


class Centred(FittedBackbone):
    """Images less the mean image of meta-training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIZE * SIZE))
        self.scale = nn.Parameter(torch.ones(SIZE * SIZE))
        self.calls = 0

    def fit(self, inputs: Tensor) -> None:
        self.mean.copy_(inputs.flatten(1).float().mean(0) / 255)
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) * self.scale


@pytest.mark.parametrize("classes", [("train",), ("train", "val")], ids=["train", "trainval"])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_backbone_is_fitted_once_to_all_inputs_of_meta_training(stage: str, classes: tuple[Split, ...]) -> None:
    data, module = blobs(train_split="".join(classes)), ProtoNet(Centred())
    getattr(trainer(max_steps=1), stage)(module, data)
    images = torch.cat([data.load_source(split).inputs for split in classes])
    torch.testing.assert_close(module.backbone.mean, images.float().mean(0).flatten() / 255)
    assert set(data.sources) == ({"train", "val", "test"} if stage == "fit" else {"test"}), "nothing else is held"
    trainer().test(module, data, verbose=False)
    trainer(max_steps=2).fit(module, data)
    assert module.backbone.calls == 1 and module.backbone.fitted


def test_a_backbone_cannot_be_fitted_to_inputs_that_are_drawn_anew() -> None:
    backbone = Centred()
    backbone.in_shape = (1,)
    with pytest.raises(ConfigError, match="statistics of all training inputs, but Sinusoid draws them anew"):
        trainer().test(ProtoNet(backbone, metric=EpisodicMSE()), sinusoids(), verbose=False)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_one_class_is_no_classification(split: str) -> None:
    """Every answer is right, so that any algorithm has 100 %."""
    shapes = {name: ShapeOverride(n_way=1 if name == split else 3) for name in ("train", "val", "test")}
    with pytest.raises(ConfigError, match=f"{split} episodes have n_way=1"):
        getattr(trainer(), "test" if split == "test" else "fit")(ProtoNet(conv4()), datamodule=blobs(**shapes))


def test_one_output_is_right_for_regression() -> None:
    module = MAML(MLP(hidden=(8,)), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE())
    trainer().fit(module, datamodule=Sinusoid(steps_per_epoch=1, val_episodes=2))


@pytest.mark.parametrize("rate", [-1, -1e-9, float("nan")])
@pytest.mark.parametrize("rule", [SGD, Momentum, InnerAdam, RMSprop, LearnedRates])
def test_an_inner_step_uphill_is_refused(rule: Any, rate: float) -> None:
    with pytest.raises(ConfigError, match=f"inner step size of {rate}"):
        maml(inner_lr=rate, inner_optimizer=rule)


@pytest.mark.parametrize("algorithm", [Baseline, partial(LEO, n_way=3), partial(Reptile, n_way=3)])
def test_an_inner_step_uphill_is_refused_by_every_algorithm(algorithm: Any) -> None:
    with pytest.raises(ConfigError, match="inner step size of -1"):
        algorithm(conv4(), inner_lr=-1)


def test_training_without_inner_steps_is_refused_but_not_evaluation() -> None:
    trainer().test(maml(inner_steps=0), datamodule=blobs(), verbose=False)
    with pytest.raises(ConfigError, match="inner_steps=0 would train MAML without adaptation"):
        trainer().fit(maml(inner_steps=0), datamodule=blobs())


def test_a_negative_clip_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_clip_val=-1"):
        trainer(gradient_clip_val=-1).fit(maml(), datamodule=blobs())


@pytest.mark.parametrize("name", ["inner_steps", "eval_inner_steps"])
def test_a_negative_number_of_inner_steps_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=-1"):
        maml(**{name: -1})


# ---- optimizer and schedule -----------------------------------------------------------------------------------------


def test_the_outer_update_is_the_injected_optimizers() -> None:
    """One step of plain SGD moves every parameter by -lr * meta-gradient of the first meta-batch."""
    module, data = maml(optimizer=lambda params: torch.optim.SGD(params, lr=0.5)), blobs()
    data.setup("fit")
    gradient = meta_gradient(module, data.dataset("train").__getitems__(range(4)))
    expected = {name: p.detach() - 0.5 * gradient[name] for name, p in module.named_parameters()}
    module.zero_grad()
    trainer().fit(module, datamodule=data)
    torch.testing.assert_close(dict(module.named_parameters()), expected, rtol=1e-5, atol=1e-7)
    assert max(g.abs().max() for g in gradient.values()) > 1e-3


def test_the_scheduler_steps_after_every_outer_update() -> None:
    module = maml(
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    )
    run = trainer(max_steps=6)  # epochs of 4: a schedule per epoch would have stepped once
    run.fit(module, datamodule=blobs())
    (optimizer,) = run.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.9**6)


def test_the_default_optimizer_is_adam_without_schedule() -> None:
    run = trainer()
    run.fit(maml(), datamodule=blobs())
    (optimizer,) = run.optimizers
    assert type(optimizer) is Adam
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert run.lr_scheduler_configs == []


# ---- evaluation -----------------------------------------------------------------------------------------------------


def autograd_evaluation(module: MAML, tasks: Episode, steps: int) -> tuple[float, float]:
    """Mean query loss and accuracy after plain autograd adaptation, task by task."""
    losses, accuracies = [], []
    for t in range(len(tasks.support.x)):
        phi = dict(module.learner.named_parameters())
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(module.learner, phi, tasks.support.x[t]), tasks.support.y[t])
            grads = torch.autograd.grad(loss, list(phi.values()))
            phi = {name: value - 0.1 * g for (name, value), g in zip(phi.items(), grads, strict=True)}
        logits = functional_call(module.learner, phi, tasks.query.x[t])
        losses.append(F.cross_entropy(logits, tasks.query.y[t]).item())
        accuracies.append((logits.argmax(1) == tasks.query.y[t]).float().mean().item())
    return sum(losses) / len(losses), sum(accuracies) / len(accuracies)


@pytest.mark.parametrize(("entry", "split", "count"), [("validate", "val", 5), ("test", "test", 7)])
def test_evaluation_through_the_trainer_adapts(entry: str, split: Any, count: int) -> None:
    """Only a single-process validate or test would run under inference_mode, where adaptation may be a silent no-op."""
    data, results = blobs(), {}
    data.setup(entry)
    tasks = data.dataset(split).__getitems__(range(count))
    for steps in (0, 5):
        module = maml(eval_inner_steps=steps)
        (results[steps],) = getattr(trainer(), entry)(module, datamodule=data, verbose=False)
        loss, acc = autograd_evaluation(module.eval(), tasks, steps)
        assert results[steps][f"{split}/loss"] == pytest.approx(loss, rel=1e-4)
        assert results[steps][f"{split}/acc"] == pytest.approx(acc, abs=1e-6)
    assert results[5][f"{split}/loss"] < results[0][f"{split}/loss"] - 0.05
    assert results[5][f"{split}/acc"] != results[0][f"{split}/acc"]


def test_validation_within_fit_adapts_and_leaves_the_next_epoch_in_training_mode() -> None:
    module = maml(eval_inner_steps=5, optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    run = trainer(max_steps=4)
    run.fit(module, datamodule=blobs())
    data = blobs()
    data.setup("validate")
    loss, _ = autograd_evaluation(module, data.dataset("val").__getitems__(range(5)), 5)
    assert run.callback_metrics["val/loss"].item() == pytest.approx(loss, rel=1e-4)
    assert module.training


def test_each_evaluation_starts_its_metrics_anew() -> None:
    module, run = maml(), trainer()
    first, second = (run.validate(module, datamodule=blobs(), verbose=False) for _ in range(2))
    assert first == second


def test_the_injected_metric_is_logged_by_its_name() -> None:
    module = MAML(MLP(hidden=(8,)), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE())
    (result,) = trainer().test(module, datamodule=Sinusoid(test_episodes=6), verbose=False)
    names = ("loss", "mse", "r2")  # the last is a companion of the second
    assert set(result) == {f"test/{name}{end}" for name in names for end in ("", "_ci95")}
    assert result["test/mse"] == pytest.approx(result["test/loss"], rel=1e-5)


# ---- buffers --------------------------------------------------------------------------------------------------------


class Remembering(MAML):
    """Half of what it remembers fades with each outer update, to which every task adds its mean grey value."""

    seen: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(conv4(), n_way=3, inner_steps=1, **kwargs)
        self.register_buffer("seen", torch.zeros(()))

    def query_loss(self, phi: dict[str, Tensor], query: Batch) -> TaskOutput:
        return super().query_loss(phi, query)._replace(buffers={"seen": self.seen / 2 + query.x.mean()})


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("batches", [1, 2])
def test_buffers_that_the_hooks_return_come_into_force_with_the_outer_update(mode: str, batches: int) -> None:
    """As the mean over all tasks of the update, also when their gradients are accumulated over several batches."""
    data, module = blobs(), Remembering(task_mode=mode)
    data.setup("fit")
    grey = [data.dataset("train").__getitems__(range(4 * i, 4 * i + 4)).query.x.mean() for i in range(2 * batches)]
    first, second = torch.stack(grey).view(2, batches).mean(1)
    trainer(max_steps=2, accumulate_grad_batches=batches).fit(module, datamodule=data)
    torch.testing.assert_close(module.seen, first / 2 + second)
    trainer().test(module, datamodule=data, verbose=False)
    torch.testing.assert_close(module.seen, first / 2 + second)


# ---- logging --------------------------------------------------------------------------------------------------------


class Talkative(ProtoNet):
    """Reports the number of query examples of a task, and the loss once more."""

    def head_loss(self, prototypes: Any, query: Batch) -> TaskOutput:
        out = super().head_loss(prototypes, query)
        return TaskOutput(out.loss, out.preds, {"queries": torch.tensor(float(len(query.y))), "again": out.loss})


def test_training_logs_loss_metric_and_the_hooks_own_scalars(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    trainer(max_steps=3, logger=logger).fit(Talkative(conv4()), datamodule=blobs())
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["train/loss"]) > 0 and 0 <= float(row["train/acc"]) <= 1 for row in rows)
    assert [float(row["train/queries"]) for row in rows] == [6, 6, 6]


def test_evaluation_measures_the_hooks_own_scalars_with_their_interval() -> None:
    data, module = blobs(eval_meta_batch_size=3), Talkative(conv4())
    for _ in range(2):  # the second test begins anew
        (tested,) = trainer().test(module, datamodule=data, verbose=False)
        assert (tested["test/queries"], tested["test/queries_ci95"]) == (6, 0)
        assert tested["test/again"] == tested["test/loss"] > 0
        assert tested["test/again_ci95"] == tested["test/loss_ci95"] > 0


def test_training_metrics_carry_the_global_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module, tasks, calls = maml(), random_episodes(n_tasks=4), []
    logs = SimpleNamespace(should_update_logs=True)
    fake = SimpleNamespace(world_size=3, fast_dev_run=0, is_last_batch=False, _logger_connector=logs)
    module.double().trainer = fake
    monkeypatch.setattr(module, "log_dict", lambda values, **options: calls.append((values, options)))
    loss = module.training_step(tasks, 0)
    values = {name: value for logged, _ in calls for name, value in logged.items()}
    assert {options["batch_size"] for _, options in calls} == {12}
    assert set(values) == {"train/loss", "train/acc"}
    assert not any(value.requires_grad for value in values.values())
    assert loss.requires_grad
    assert torch.equal(values["train/loss"], loss.detach())


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_python_built_module_loads_from_its_checkpoint(tmp_path: Path) -> None:
    settings = dict(inner_lr=0.07, inner_steps=3, eval_inner_steps=4, first_order=True, task_mode="loop")
    optimizer, metric = partial(Adam, lr=0.01), EpisodicAccuracy()
    module, run = maml(**settings, optimizer=optimizer, metric=metric), trainer()
    run.fit(module, datamodule=blobs())
    path = tmp_path / "maml.ckpt"
    run.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {name: saved[name] for name in settings} == settings
    others = {"backbone", "n_way", "head_init", "freeze", "optimizer", "metric", "inner_optimizer"}
    assert set(saved) == {*settings, *others}

    torch.manual_seed(1)
    loaded = MAML.load_from_checkpoint(path, backbone=conv4(), optimizer=optimizer, metric=metric, weights_only=True)
    assert (loaded.n_way, loaded.inner_steps, loaded.eval_inner_steps, loaded.first_order) == (3, 3, 4, True)
    assert loaded.inner_optimizer.lr == 0.07
    assert loaded.task_mode == "loop"
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    tasks = random_episodes()
    before, after = module.double().eval().play(tasks), loaded.double().eval().play(tasks)
    assert torch.equal(before.preds, after.preds)


def test_what_a_checkpoint_cannot_hold_is_asked_for_by_name(tmp_path: Path) -> None:
    """Defaults in its stead would make a classifier of this regressor, which then reports an accuracy of 1."""
    objects = dict(
        backbone=MLP(hidden=(8,)), loss_fn=F.mse_loss, metric=EpisodicMSE(), inner_optimizer=Momentum,
        optimizer=partial(Adam, lr=0.01), lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=3),
    )  # fmt: skip
    path, run, data = tmp_path / "maml.ckpt", trainer(), Sinusoid(test_episodes=6)
    run.fit(module := MAML(**objects, n_way=1, inner_lr=0.01), datamodule=data)
    (tested,) = run.test(module, datamodule=data, verbose=False)
    run.save_checkpoint(path)
    for missing in objects:
        given = {name: value for name, value in objects.items() if name != missing}
        with pytest.raises(ConfigError, match=rf"given {missing} \(.*load_from_checkpoint\(path, {missing}=\.\.\.\)"):
            MAML.load_from_checkpoint(path, **given)
    with pytest.raises(ConfigError, match=r"loss_fn \(mse_loss\), .*inner_optimizer \(Momentum\)"):
        MAML.load_from_checkpoint(path)
    loaded = MAML.load_from_checkpoint(path, **objects)
    assert trainer().test(loaded, datamodule=data, verbose=False) == [tested]


@pytest.mark.parametrize("value", [Path("data"), np.float64(0.1), [np.int64(3)], {"rate": torch.float32}])
def test_what_a_checkpoint_cannot_hold_never_makes_it_unreadable(value: Any, tmp_path: Path) -> None:
    class Picky(ProtoNet):
        def __init__(self, *args: Any, setting: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    run = trainer()
    run.strategy.connect(Picky(conv4(), setting=value))
    run.save_checkpoint(tmp_path / "picky.ckpt")
    with pytest.raises(ConfigError, match=r"setting="):
        Picky.load_from_checkpoint(tmp_path / "picky.ckpt", backbone=conv4())


def test_explicit_settings_overrule_the_checkpoints(tmp_path: Path) -> None:
    run = trainer()
    run.fit(maml(), datamodule=blobs())
    run.save_checkpoint(tmp_path / "maml.ckpt")
    loaded = MAML.load_from_checkpoint(tmp_path / "maml.ckpt", backbone=conv4(), eval_inner_steps=9)
    assert (loaded.inner_steps, loaded.eval_inner_steps) == (2, 9)


# ---- training steps -------------------------------------------------------------------------------------------------


class Losses(pl.Callback):
    """Of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        self.seen.append(outputs["loss"].item())


def test_steps_are_logged_when_the_loggers_get_them_and_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    losses, calls = Losses(), []

    class Counts(MAML):
        def log_dict(self, *args: Any, **kwargs: Any) -> None:
            calls.append(self.global_step)
            super().log_dict(*args, **kwargs)

    run = trainer(
        max_steps=10, log_every_n_steps=4, logger=CSVLogger(tmp_path, name="", version=""), callbacks=[losses]
    )
    run.fit(Counts(conv4(), n_way=3, inner_lr=0.1), datamodule=blobs(steps_per_epoch=5))
    assert sorted(set(calls)) == [3, 4, 7, 9]  # from 0: the 4th, 8th; the last of each epoch
    with (tmp_path / "metrics.csv").open() as file:
        rows = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert rows == pytest.approx({3: losses.seen[3], 7: losses.seen[7]}, rel=1e-6)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(losses.seen[9], rel=1e-6)


@pytest.mark.parametrize("step", [0, 255, 256, 1000])
def test_noise_is_seeded_by_seed_batch_and_rank(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")

    class Third(MAML):
        global_rank = 3

    Third(conv4(), n_way=3).seed_noise(step)
    assert torch.initial_seed() == int(episode_keys(7, 1003, [step])[0])
