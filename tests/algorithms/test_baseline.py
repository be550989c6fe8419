"""Baseline: supervised training on all classes, a head fitted to frozen features."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import Baseline
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import Sinusoid
from lightning_meta.errors import ConfigError
from tests.conftest import CLASSES, Make, blobs, conv4, meta_gradient

CASES: dict[str, Make] = {"baseline": lambda: Baseline(conv4(), n_classes=12, inner_lr=0.1, eval_inner_steps=10)}
LR, STEPS = 0.05, 20


def baseline(norm: str = "transductive", **overrides) -> Baseline:
    torch.manual_seed(0)
    settings = dict(n_classes=CLASSES, inner_lr=LR, eval_inner_steps=STEPS)
    return Baseline(conv4(norm), **(settings | overrides)).double()


def trainer(folder: Path, **settings) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", inference_mode=False, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def fit_head(features: Tensor, labels: Tensor, steps: int) -> nn.Linear:
    """By torch.optim on a head with as many outputs as the task has classes."""
    head = nn.Linear(features.shape[1], 3, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), LR)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(head(features.detach()), labels).backward()
        optimizer.step()
    return head


@pytest.mark.parametrize("norm", ["transductive", "running"])
def test_training_gradient_is_that_of_cross_entropy_over_the_pooled_batch(norm: str, episodes: Episode) -> None:
    """For one episode, here of three classes among twelve, the batch of a training step.

    Running averages are kept of the pooled images; the transductive protocol normalises each set by itself.
    """
    tasks = Episode(*(Batch(x[:1], y[:1] + 7) for x, y in episodes))
    module = baseline(norm, task_mode="loop")
    out, gradient = module.play(tasks), meta_gradient(module, tasks)
    module.zero_grad()
    images, labels = (torch.cat([getattr(part, name)[0] for part in tasks]) for name in ("x", "y"))
    parts = [images] if norm == "running" else [part.x[0] for part in tasks]
    logits = module.classifier(torch.cat([module.backbone(part) for part in parts]))
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    torch.testing.assert_close(out.loss[0], loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(out.preds[0], logits[len(tasks.support.y[0]) :], rtol=1e-12, atol=1e-14)
    assert set(gradient) == {name for name, _ in module.named_parameters()}
    expected = {name: p.grad for name, p in module.named_parameters()}
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("norm", ["transductive", "running"])
def test_the_fitted_head_is_that_of_a_plain_sgd_loop(norm: str, mode: str, episodes: Episode) -> None:
    """Its class slots without examples have no influence."""
    module = baseline(norm).eval()
    module.task_mode = mode
    out = module.play(episodes)
    for t in range(3):
        head = fit_head(module.backbone(episodes.support.x[t]), episodes.support.y[t], STEPS)
        logits = head(module.backbone(episodes.query.x[t]))
        torch.testing.assert_close(out.preds[t, :, :3], logits, rtol=1e-10, atol=1e-12)
        assert out.preds[t, :, 3:].isneginf().all()
        torch.testing.assert_close(out.loss[t], F.cross_entropy(logits, episodes.query.y[t]), rtol=1e-10, atol=1e-12)


def test_more_steps_lower_the_loss_on_the_support_set(episodes: Episode) -> None:
    on_support = Episode(episodes.support, episodes.support)
    losses = [baseline(eval_inner_steps=steps).eval().play(on_support).loss for steps in (0, 5, 50)]
    torch.testing.assert_close(losses[0], torch.full((3,), 3.0).double().log())  # from zeros: no class is preferred
    assert (losses[0] > losses[1]).all()
    assert (losses[1] > losses[2]).all()


def test_inductive_predictions_ignore_the_other_queries(episodes: Episode) -> None:
    module = baseline("inductive").eval()
    first = Episode(episodes.support, Batch(episodes.query.x[:, :1], episodes.query.y[:, :1]))
    torch.testing.assert_close(module.play(first).preds[:, 0], module.play(episodes).preds[:, 0])


def test_a_checkpoint_of_fit_is_tested_without_the_training_classes(tmp_path: Path) -> None:
    """And testing leaves the module as it is, though it fits a head to every task."""
    data, trained = blobs(meta_batch_size=1), Baseline(conv4("running"), task_mode="loop")
    fitting = trainer(tmp_path, max_steps=4)
    fitting.fit(trained, datamodule=data)
    assert trained.classifier.out_features == CLASSES
    (expected,) = trainer(tmp_path).test(trained, datamodule=data, verbose=False)

    path = fitting.checkpoint_callback.best_model_path
    fresh = Baseline(conv4("running"), task_mode="loop")
    assert fresh.classifier is None
    (tested,) = trainer(tmp_path).test(fresh, datamodule=blobs(), ckpt_path=path, verbose=False)
    assert tested == pytest.approx(expected, abs=1e-6)
    loaded = Baseline.load_from_checkpoint(path, backbone=conv4("running"))
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert len(saved["classifier.weight"]) == CLASSES
    for module in (trained, fresh, loaded):
        torch.testing.assert_close(dict(module.state_dict()), dict(saved), rtol=0, atol=0)


def test_training_learns_the_names_of_classes(tmp_path: Path) -> None:
    """Episodes of three classes, yet the classifier tells all twelve apart."""
    data, module = blobs(meta_batch_size=1, n_way=6), Baseline(conv4("running", hidden=16), task_mode="loop")
    trainer(tmp_path, max_steps=150, limit_val_batches=0, enable_checkpointing=False).fit(module, datamodule=data)
    images = data.source("train").inputs.float() / 255
    classes = module.classifier(module.eval().backbone(images)).argmax(1)
    assert (classes == torch.arange(CLASSES).repeat_interleave(12)).double().mean() > 0.8


def test_a_wrong_number_of_classes_names_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"n_classes=5.*{CLASSES} classes"):
        trainer(tmp_path, max_steps=1).fit(Baseline(conv4(), n_classes=5), datamodule=blobs())


def test_data_without_classes_are_refused(tmp_path: Path) -> None:
    backbone = conv4()
    backbone.in_shape = (1,)
    with pytest.raises(ConfigError, match="Sinusoid"):
        trainer(tmp_path, max_steps=1).fit(Baseline(backbone), datamodule=Sinusoid())


def test_hooks_without_a_classifier_say_so(episodes: Episode) -> None:
    with pytest.raises(ConfigError, match="n_classes"):
        baseline(n_classes=None).play(episodes)
