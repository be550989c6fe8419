"""What every algorithm promises. The modules that it is checked with are in the test file of each; see `cases.py`.

Its backbone may be of any normalisation protocol: tests put it under those that they are about.
"""

from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import MutualExclusivenessMAML
from lightning_meta.backbones.norm import batch_norm_layers
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import EpisodicDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EpisodicModule, StreamModule
from tests.algorithms.cases import CASES, ONE_OF_A_CLASS, TRANSDUCTIVE_IN_TRAINING, data_for, draw_for, make_of, marked
from tests.conftest import Make, meta_gradient, put_in_force

PROTOCOLS = ("inductive", "transductive")


def under(protocol: str, module: EpisodicModule) -> EpisodicModule:
    """The module with another normalisation protocol."""
    for layer in batch_norm_layers(module).values():
        layer.protocol = protocol
    return module


def first(part: Batch) -> Batch:
    """Of the first task."""
    return Batch(part.x[0], part.y[0])


@pytest.fixture(autouse=True)
def _deterministic_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make noise a function of the values it is drawn for: the same however tasks are mapped and examples ordered.

    A gentle function: noise that is drawn again in every inner step would magnify rounding errors.
    """
    monkeypatch.setattr("torch.randn_like", lambda x: torch.cos(10 * x).detach())
    monkeypatch.setattr("torch.rand_like", lambda x: (torch.cos(10 * x).detach() + 1) / 2)


once_per_class = pytest.mark.parametrize("algorithm", marked(ONE_OF_A_CLASS))
by_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


@pytest.fixture(params=marked(CASES))
def algorithm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(algorithm: str) -> Make:
    def seeded() -> EpisodicModule:
        torch.manual_seed(0)
        return make_of(algorithm)()

    return seeded


@pytest.fixture
def draw(algorithm: str) -> Callable[..., Episode]:
    return draw_for(algorithm)


@pytest.fixture
def episodes(draw: Callable[..., Episode]) -> Episode:
    return draw()


@pytest.fixture
def data(algorithm: str) -> EpisodicDataModule:
    return data_for(algorithm)


@pytest.fixture
def module(make: Make) -> EpisodicModule:
    return make().double()


@pytest.mark.parametrize(
    ("protocol", "chunk_size"), [("transductive", None), pytest.param("inductive", 2, marks=pytest.mark.slow)]
)
def test_vmap_equals_loop_in_value_and_meta_gradient(
    module: EpisodicModule, episodes: Episode, protocol: str, chunk_size: int | None
) -> None:
    under(protocol, module).task_mode = "loop"
    looped, gradient = module.play(episodes), meta_gradient(module, episodes)
    module.task_mode, module.task_chunk_size = "vmap", chunk_size
    mapped = module.play(episodes)
    torch.testing.assert_close(mapped, looped, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(meta_gradient(module, episodes), gradient, rtol=1e-8, atol=1e-12)
    assert max(g.abs().max() for g in gradient.values()) > 1e-4


@pytest.mark.parametrize(
    ("training", "protocol"),
    [
        (True, "transductive"),
        (False, "inductive"),
        pytest.param(True, "inductive", marks=pytest.mark.slow),
        pytest.param(False, "transductive", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_one_task_alone_equals_the_same_task_in_a_batch(
    module: EpisodicModule, episodes: Episode, protocol: str, training: bool
) -> None:
    """One algorithm has a term between tasks in its training loss, but not in predictions or evaluation."""
    together = under(protocol, module).train(training).play(episodes)
    for t in range(3):
        alone = module.play(tree_map(lambda leaf, t=t: leaf[t : t + 1], episodes))
        torch.testing.assert_close(alone.preds[0], together.preds[t], rtol=1e-10, atol=1e-12)
        if not training or not isinstance(module, MutualExclusivenessMAML):
            torch.testing.assert_close(alone.loss[0], together.loss[t], rtol=1e-10, atol=1e-12)


@by_protocol
@torch.no_grad()
def test_order_of_support_and_query_does_not_matter(module: EpisodicModule, episodes: Episode, protocol: str) -> None:
    """Nor does that of a support set, unless it is read as a stream."""
    support, (qx, qy) = episodes
    if not isinstance(module, StreamModule):
        support = Batch(support.x.flip(1), support.y.flip(1))
    shuffled = Episode(support, Batch(qx.flip(1), qy.flip(1)))
    before, after = (under(protocol, module).play(tasks) for tasks in (episodes, shuffled))
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(after.preds, before.preds.flip(1), rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_under_inductive_a_prediction_does_not_depend_on_the_other_queries(
    module: EpisodicModule, episodes: Episode
) -> None:
    """Under transductive it does, so that this could fail, and so it does where the head is said to be transductive.

    By the meta-batch, and by the two hooks that users call.
    """
    support, (x, y) = episodes
    kept = Batch(x[:, 1:3], y[:, 1:3])  # others stood before and after them
    for protocol in PROTOCOLS if batch_norm_layers(module) else ("",):
        under(protocol, module).eval()
        adapted = module.adapt(first(support))
        together = module.play(episodes).preds[:, 1:3], module.predict(adapted, x[0])[1:3]
        alone = module.play(Episode(support, kept)).preds, module.predict(adapted, x[0, 1:3])
        for ours, theirs in zip(alone, together, strict=True):
            if protocol == "transductive" or module.transductive:
                assert not torch.allclose(ours, theirs, rtol=0, atol=1e-4)
            else:
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
@torch.no_grad()
def test_where_the_query_is_the_support_inductive_equals_transductive(
    module: EpisodicModule, episodes: Episode, training: bool
) -> None:
    """The support's statistics are then the query's: those under the weights that the query sees, at every step."""
    if not batch_norm_layers(module):
        pytest.skip("no normalisation")
    module.train(training)
    tasks = Episode(episodes.support, episodes.support)
    inductive, transductive = (under(protocol, module).play(tasks) for protocol in PROTOCOLS)
    torch.testing.assert_close(inductive, transductive, rtol=1e-9, atol=1e-11)
    inductive, transductive = (under(protocol, module).play(episodes).preds for protocol in PROTOCOLS)
    alike = torch.allclose(inductive, transductive, rtol=0, atol=1e-4)
    assert alike == (training and type(module) in TRANSDUCTIVE_IN_TRAINING)


def test_hooks_leave_the_module_unchanged(module: EpisodicModule, episodes: Episode) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.play(episodes)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_evaluation_keeps_no_outer_graph(module: EpisodicModule, episodes: Episode) -> None:
    module.eval()
    with torch.no_grad():
        out = module.play(episodes)
    assert not out.loss.requires_grad
    assert not out.preds.requires_grad


@torch.no_grad()
def test_predictions_need_no_query_labels(module: EpisodicModule, episodes: Episode) -> None:
    """Other labels, another loss, the same predictions. So `predict` can do without them."""
    support, (qx, qy) = tree_map(lambda leaf: leaf[0], episodes)
    classifies = isinstance(module.metric, EpisodicAccuracy)
    adapted = module.eval().adapt(support)
    out = module.query_loss(adapted, Batch(qx, qy))
    other = module.query_loss(adapted, Batch(qx, 1 - qy if qy.is_floating_point() else (qy + 1) % 3))
    assert torch.equal(other.preds, out.preds)
    assert not torch.allclose(other.loss, out.loss)
    predicted = module.predict(adapted, qx)
    if classifies:
        assert torch.equal(predicted.argmax(1), out.preds.argmax(1))
        torch.testing.assert_close(predicted[:, :3].sum(1), torch.ones_like(predicted[:, 0]))
        torch.testing.assert_close(predicted, out.preds.softmax(1))
    else:
        assert torch.equal(predicted, out.preds)


@once_per_class
@pytest.mark.parametrize("protocol", ["transductive", pytest.param("inductive", marks=pytest.mark.slow)])
def test_meta_gradient_under_bf16_points_where_that_of_fp32_does(make: Make, episodes: Episode, protocol: str) -> None:
    module, tasks = (
        under(protocol, make()),
        tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, episodes),
    )
    module.task_mode = "loop"  # under vmap on a CPU, autocast leaves convolutions in fp32
    exact = meta_gradient(module, tasks)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = meta_gradient(module, tasks)
    assert all(g.dtype == torch.float32 for g in rounded.values())
    a, b = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (exact, rounded))
    assert a @ b / a.norm() / b.norm() > 0.9


@once_per_class
def test_fit_validate_test_predict(make: Make, data: EpisodicDataModule, tmp_path) -> None:
    module = make()
    name = module.metric.name
    before = [p.detach().clone() for p in module.parameters()]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", inference_mode=False, default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    logged = {"train/loss", f"train/{name}", "val/loss", f"val/{name}", f"val/{name}_ci95"}
    assert logged <= set(trainer.callback_metrics)
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    data.setup("test")
    module.setup("test")  # asks for a stream of support examples where that is what it reads
    out = module.eval().play(data.dataset("test").__getitems__(range(7)))
    values = module.metric.per_episode(out.preds, data.dataset("test").__getitems__(range(7)).query.y)
    assert tested[f"test/{name}"] == pytest.approx(values.mean().item(), abs=1e-6)
    assert tested[f"test/{name}_ci95"] == pytest.approx(1.96 * values.std().item() / 7**0.5, abs=1e-6)
    predictions = trainer.predict(module, datamodule=data)
    torch.testing.assert_close(torch.cat(predictions), out.preds.detach(), rtol=1e-4, atol=1e-5)
    assert f"val/{name}" in trainer.validate(module, datamodule=data, verbose=False)[0]


@once_per_class
def test_comes_back_from_a_checkpoint_with_the_objects_that_it_cannot_hold(
    make: Make, episodes: Episode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cls = type(make())
    given, build = {}, cls.__init__

    @wraps(build)
    def note(self: EpisodicModule, *args: Any, **kwargs: Any) -> None:
        given.update(signature(build).bind(self, *args, **kwargs).arguments, **kwargs)
        build(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "__init__", note)
        module = make()
    objects = {name: value for name, value in given.items() if isinstance(value, nn.Module | partial | FunctionType)}
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    objects.pop("self")
    if objects:
        with pytest.raises(ConfigError, match=".*".join(f"{name} " for name in objects)):
            cls.load_from_checkpoint(tmp_path / "module.ckpt")
    loaded = cls.load_from_checkpoint(tmp_path / "module.ckpt", **objects)
    assert loaded.hparams == module.hparams
    found, expected = (m.double().eval().play(episodes) for m in (loaded, module))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@once_per_class
def test_learns_an_easy_problem(make: Make, draw: Callable[..., Episode]) -> None:
    """Within 30 steps, overfitting two random tasks must reduce the loss well below where it starts.

    The loss of evaluation: in training it may be a surrogate, such as Reptile's distance.
    """
    module, tasks = make().double(), draw(n_tasks=2)
    tasks = Episode(tasks.support, tasks.support)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

    def loss() -> float:
        with torch.no_grad():
            return module.eval().play(tasks).loss.mean().item()

    losses = [loss()]
    while losses[-1] >= 0.7 * losses[0]:
        assert len(losses) <= 5, losses
        for _ in range(6):
            module.train().zero_grad()
            out = module.play(tasks)
            out.loss.mean().backward()
            optimizer.step()
            put_in_force(module, out)
        losses.append(loss())
