"""Active learning (active_learning): what is chosen, against searches by brute force; no label is looked up."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import ActiveLearning
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from lightning_meta.reports import LabelCurve
from lightning_meta.reports.label_curve import label_curve
from tests.algorithms.bilevel_cases import held_out, network
from tests.conftest import SIZE, Make

SETTINGS: dict[str, Any] = dict(n_classes=4, start=3, per_round=2, labels=9, inner_steps=4)


def module(**settings: Any) -> ActiveLearning:
    """With a pool of 20 examples."""
    torch.manual_seed(0)
    made = ActiveLearning(network(), **(SETTINGS | settings)).double()
    made.pool = Batch(torch.rand(20, 1, SIZE, SIZE).double(), torch.arange(20) % 4)
    return made


BILEVEL: dict[str, Make] = {f"active_learning_{kind}": partial(module, acquire=kind) for kind in ("glister", "entropy")}
NEEDS = {"ActiveLearning": {"truncation": 1}}  # of data


def start(made: ActiveLearning) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random weights, and an order with three labels."""
    weights = {name: 0.3 * torch.randn_like(value) for name, value in made.network.named_parameters()}
    return weights, torch.tensor([7, 0, 13, -1, -1, -1, -1, -1, -1])


def test_a_round_trains_on_what_has_labels_alone() -> None:
    made = module(inner_lr=0.3)
    weights, order = start(made)
    trained = made.trained(weights, order)
    copied = deepcopy(made.network).requires_grad_(True)
    copied.load_state_dict(weights)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.3)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(copied(made.pool.x[[7, 0, 13]]), made.pool.y[[7, 0, 13]]).backward()
        optimizer.step()
    torch.testing.assert_close(trained, dict(copied.named_parameters()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("judged_by", ["labelled", "held_out"])
def test_glister_takes_what_lowers_the_loss_most_one_by_one(judged_by: str) -> None:
    """By trying every example: the loss after a small step on it, under the label that the network guesses."""
    made = module(judged_by=judged_by, virtual_lr=0.2, per_round=3)
    weights, order = start(made)
    query = Batch(torch.rand(8, 1, SIZE, SIZE).double(), torch.arange(8) % 4)
    chosen = made.next_order(weights, order, torch.rand(20), query)
    judge = query if judged_by == "held_out" else Batch(made.pool.x[[7, 0, 13]], made.pool.y[[7, 0, 13]])
    guess, expected = made.logits(weights, made.pool.x).argmax(1), [7, 0, 13]

    def after(weights: dict[str, torch.Tensor], e: int, lr: float) -> dict[str, torch.Tensor]:
        return step(made, weights, Batch(made.pool.x[[e]], guess[[e]]), lr)

    for _ in range(3):
        losses = {e: made.losses(after(weights, e, 1e-5), judge).mean().item() for e in range(20) if e not in expected}
        expected.append(min(losses, key=losses.__getitem__))
        weights = after(weights, expected[-1], 0.2)
    assert chosen.tolist() == [*expected, -1, -1, -1]


def step(made: ActiveLearning, weights: dict[str, torch.Tensor], one: Batch, lr: float) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    slopes = torch.autograd.grad(made.losses(leaves, one).mean(), list(leaves.values()))
    return {name: value.detach() - lr * slope for (name, value), slope in zip(leaves.items(), slopes, strict=True)}


def test_entropy_takes_what_the_network_is_least_sure_of() -> None:
    made = module(acquire="entropy")
    weights, order = start(made)
    chosen = made.next_order(weights, order, torch.rand(20), Batch(torch.zeros(0), torch.zeros(0)))
    entropy = torch.distributions.Categorical(logits=made.logits(weights, made.pool.x)).entropy()
    expected = sorted((e for e in range(20) if e not in (7, 0, 13)), key=lambda e: -entropy[e])[:2]
    assert chosen.tolist() == [7, 0, 13, *expected, -1, -1, -1, -1]


@pytest.mark.parametrize("acquire", ["glister", "entropy", "random"])
def test_labels_that_nobody_asked_for_are_not_read(acquire: str) -> None:
    made = module(acquire=acquire)
    weights, order = start(made)
    known, chance = torch.zeros(20, dtype=torch.bool).index_fill(0, torch.tensor([7, 0, 13]), True), torch.rand(20)
    query = Batch(torch.rand(4, 1, SIZE, SIZE).double(), torch.arange(4))
    chosen = made.next_order(made.trained(weights, order), order, chance, query)
    made.pool = Batch(made.pool.x, torch.where(known, made.pool.y, (made.pool.y + 1) % 4))
    assert torch.equal(made.next_order(made.trained(weights, order), order, chance, query), chosen)
    before = made.trained(weights, order)["head.weight"]
    made.pool = Batch(made.pool.x, torch.where(known, (made.pool.y + 1) % 4, made.pool.y))
    assert not torch.allclose(made.trained(weights, order)["head.weight"], before), "those asked for are"


def fitted(steps: int, folder: Any, ckpt: Any = None, **data: Any) -> tuple[ActiveLearning, pl.Trainer]:
    torch.manual_seed(0)
    made = ActiveLearning(network(), **SETTINGS)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", inference_mode=False, logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(made, datamodule=held_out(flip=0.0, meta_batch_size=2, **data), ckpt_path=ckpt)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return made, trainer


def test_rounds_go_on_exactly_and_add_labels_until_there_are_enough(tmp_path: Any) -> None:
    whole, trainer = fitted(4, tmp_path)
    fitted(2, tmp_path)
    rest, _ = fitted(4, tmp_path, tmp_path / "2.ckpt")
    torch.testing.assert_close(whole.carried, rest.carried, rtol=0, atol=0)
    order_TL = whole.carried.state["order"]
    assert order_TL.shape == (2, 9) and all(len({*row}) == 9 and min(row) >= 0 for row in order_TL.tolist())
    assert order_TL[0].tolist() != order_TL[1].tolist(), "trainings begin with other labels"
    (tested,) = trainer.test(whole, datamodule=trainer.datamodule, verbose=False)
    data = trainer.datamodule
    judges = data.judges("test")
    expected = [
        (whole.logits({k: v[t] for k, v in whole.carried.params.items()}, judges.x).argmax(1) == judges.y)
        .float()
        .mean()
        for t in range(2)
    ]
    assert tested["test/acc"] == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)


def test_a_training_that_is_stopped_early_is_judged_with_the_labels_of_its_curve(tmp_path: Any) -> None:
    made, trainer = fitted(3, tmp_path)
    order_TL = made.carried.state["order"]
    assert (order_TL >= 0).sum(1).tolist() == [7, 7], "those that the last network was trained on"
    report = LabelCurve(logged=())
    tester = pl.Trainer(
        accelerator="cpu", inference_mode=False, logger=pl.loggers.CSVLogger(tmp_path), callbacks=[report],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    (tested,) = tester.test(made, datamodule=trainer.datamodule, ckpt_path=tmp_path / "3.ckpt", verbose=False)
    assert [*report.acc_of] == [3, 5, 7]
    assert tested["test/acc"] == pytest.approx(report.acc_of[7].mean().item(), abs=1e-6)
    ticks = label_curve(report.acc_of, "").axes[0].get_xticks()
    assert all(tick == int(tick) for tick in ticks), "labels are whole"

    longer, _ = fitted(4, tmp_path)
    assert torch.equal(longer.carried.state["order"][:, :7], order_TL[:, :7])
    with torch.no_grad():
        for place, (start_weights, order_L) in enumerate(made.beginnings()):
            weights = made.trained(start_weights, order_L)
            query = Batch(torch.zeros(0), torch.zeros(0))
            chosen = made.next_order(weights, order_L, torch.zeros(20), query)
            assert chosen.tolist() == longer.carried.state["order"][place].tolist(), "chosen by the network before"


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({"acquire": "margin"}, {}, "acquire='margin' must be glister, entropy or random"),
        ({"labels": 10}, {}, "labels=10 cannot be reached from start=3 by 2 a round; take 9, say"),
        ({"labels": 21}, {}, "labels=21, but Blobs has 20 examples to learn from"),
        ({}, {"truncation": 2}, "set data.truncation=2 to 1"),
    ],
)
def test_rounds_that_cannot_be_played_are_refused(settings: Any, data: Any, message: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        made = ActiveLearning(network(), **(SETTINGS | settings))
        pl.Trainer(
            max_steps=1, accelerator="cpu", inference_mode=False, logger=False, default_root_dir=tmp_path,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(made, datamodule=held_out(flip=0.0, **data))  # fmt: skip
