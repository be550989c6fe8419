"""Learning rates that follow the length of the training, against torch's with the length as a number."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lightning_meta.algorithms import ProtoNet
from lightning_meta.backbones import MLP
from lightning_meta.errors import ConfigError
from lightning_meta.schedules import CosineAnnealing, LinearDecay, Schedule, StepDecay
from tests.conftest import blobs

STEPS = 12
RATES = (0.3, 0.01)


def rates(make: Callable[[SGD], LRScheduler], steps: int = STEPS, length: int | None = None) -> list[list[float]]:
    """The rates of two groups before each of so many steps, and after them."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    optimizer = SGD(groups, lr=1.0)
    schedule = make(optimizer)
    if isinstance(schedule, Schedule) and length:
        schedule.stretch(length)
    found = []
    for _ in range(steps + 1):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (CosineAnnealing, partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS)),
        (partial(CosineAnnealing, eta_min=0.001), partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS, eta_min=0.001)),
        (LinearDecay, partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=STEPS)),
        (partial(LinearDecay, start_factor=0.1, end_factor=1.0),
         partial(lr_scheduler.LinearLR, start_factor=0.1, end_factor=1.0, total_iters=STEPS)),
        (partial(StepDecay, every=0.25, gamma=0.5), partial(lr_scheduler.StepLR, step_size=3, gamma=0.5)),
        (partial(StepDecay, every=1 / 12, gamma=0.9), partial(lr_scheduler.StepLR, step_size=1, gamma=0.9)),
    ],
)  # fmt: skip
def test_over_the_training_the_rates_are_torchs(ours: Any, torchs: Any) -> None:
    torch.testing.assert_close(rates(ours, length=STEPS), rates(torchs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [CosineAnnealing, LinearDecay])
def test_after_its_end_the_rate_stays(make: Any) -> None:
    """Torch's cosine comes up again."""
    *_, end, later, last = rates(make, steps=STEPS + 2, length=STEPS)
    assert end == later == last == [0, 0]
    assert rates(partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS), steps=STEPS + 2)[-1][0] > 0.01


@pytest.mark.parametrize("make", [partial(CosineAnnealing, T_max=5), partial(LinearDecay, total_iters=5)])
def test_a_length_that_was_given_stays(make: Any) -> None:
    assert rates(make, length=STEPS)[5] == [0, 0]
    assert rates(make) == rates(make, length=STEPS)


def test_without_a_length_it_says_so() -> None:
    with pytest.raises(ConfigError, match=r"CosineAnnealing does not know how long training is"):
        rates(CosineAnnealing)
    for length in (0, -1):
        with pytest.raises(ConfigError, match=rf"a schedule of {length} steps"):
            rates(partial(CosineAnnealing, T_max=length))
    for every in (0, 1.5, 2000):
        with pytest.raises(ConfigError, match=rf"every={every} must be a part"):
            rates(partial(StepDecay, every=every))


# ---- in a training --------------------------------------------------------------------------------------------------


class Rates(pl.Callback):
    """The rate of each outer update."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def trained(schedule: Any, ckpt_path: Path | None = None, save: Path | None = None, **switches: Any) -> list[float]:
    torch.manual_seed(0)
    module = ProtoNet(
        MLP(in_features=256, hidden=(4,)), optimizer=lambda params: SGD(params, lr=1.0), lr_scheduler=schedule
    )
    notes = Rates()
    trainer = pl.Trainer(
        accelerator="cpu", inference_mode=False, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, callbacks=[notes], **switches,
    )  # fmt: skip
    trainer.fit(module, datamodule=blobs(steps_per_epoch=4, val_episodes=2), ckpt_path=ckpt_path)
    if save:
        trainer.save_checkpoint(save)
    return notes.seen


def linear(steps: int) -> list[float]:
    return [1 - step / steps for step in range(steps)]


@pytest.mark.parametrize(
    "switches",
    [
        {"max_steps": 8},
        {"max_epochs": 2},
        {"max_steps": 8, "max_epochs": 3},
        {"max_steps": 8, "accumulate_grad_batches": 2},
        {"max_epochs": 4, "limit_train_batches": 2},
    ],
)
def test_the_rate_falls_over_the_whole_training_however_its_length_is_told(switches: dict[str, Any]) -> None:
    assert trained(LinearDecay, **switches) == pytest.approx(linear(8))


def test_a_training_that_is_made_longer_follows_its_new_length(tmp_path: Path) -> None:
    """From the first step on: the checkpoint does not keep the old length, at whose end the rate is 0."""
    trained(LinearDecay, save=tmp_path / "short.ckpt", max_steps=4)
    assert trained(LinearDecay, ckpt_path=tmp_path / "short.ckpt", max_steps=16) == pytest.approx(linear(16)[4:])


def test_an_endless_training_has_no_schedule_to_follow() -> None:
    with pytest.raises(ConfigError, match=r"length of the training, which has none; set trainer.max_steps"):
        trained(CosineAnnealing, max_steps=-1, max_epochs=-1)


def test_a_cosine_of_torchs_that_comes_up_again_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match=r"CosineAnnealingLR\(T_max=4\) .* before the 8 steps .* rises again"):
        trained(partial(lr_scheduler.CosineAnnealingLR, T_max=4), max_steps=8)
