"""What every bilevel algorithm promises, and what the module owns: the order of steps, resume, evaluation."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_meta import algorithms
from lightning_meta.algorithms import FixedWeights, MetaWeightNet
from lightning_meta.backbones import MLP, Conv4, Wrapped
from lightning_meta.compat import tree_leaves, tree_map
from lightning_meta.core import (
    Adam,
    Batch,
    FiniteDifference,
    FirstOrder,
    Implicit,
    Momentum,
    Params,
    Progress,
    Unrolled,
)
from lightning_meta.core.dice import uniform
from lightning_meta.core.episode import Step
from lightning_meta.datamodules import HeldOutImages
from lightning_meta.errors import ConfigError
from lightning_meta.modules import BilevelModule, ChildrenModule
from tests.algorithms.bilevel_cases import (
    STEPS,
    first_trials,
    held_out,
    network,
    outer_gradient,
    trainer,
    trial_of,
    whole_trainings,
)
from tests.conftest import SIZE
from tests.modules.test_resume import assert_equal

Make = Callable[..., BilevelModule]
FILES = sorted((Path(algorithms.__file__).parent / "bilevel").glob("[a-z]*.py"))
CASES: dict[str, Make] = {}
NEEDS: dict[str, dict[str, Any]] = {"LearningToReweight": dict(meta_batch_size=1, truncation=1)}  # of data, by class
for file in FILES:
    tests = import_module(f"tests.algorithms.test_{file.stem}")
    CASES |= getattr(tests, "BILEVEL", {})
    NEEDS |= getattr(tests, "NEEDS", {})


def data_for(module: BilevelModule, **overrides: Any) -> HeldOutImages:
    """Two trainings of two steps where the algorithm allows it."""
    several = {"meta_batch_size": 2, "truncation": 2} | NEEDS.get(type(module).__name__, {})
    if isinstance(module, ChildrenModule):
        return whole_trainings(**overrides)
    return held_out(**(several | overrides))


@pytest.fixture(params=CASES.values(), ids=CASES)
def make(request: pytest.FixtureRequest) -> Make:
    def seeded(**settings: Any) -> BilevelModule:
        torch.manual_seed(0)
        return request.param(**settings).double().train()

    return seeded


@pytest.fixture(autouse=True)
def _deterministic_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.randn_like", lambda x: torch.cos(10 * x).detach())


# ---- the contract ---------------------------------------------------------------------------------------------------


def test_every_algorithm_has_a_case() -> None:
    classes = {
        name for name in algorithms.__all__
        if issubclass(getattr(algorithms, name), BilevelModule)
    }  # fmt: skip
    assert classes == {type(make()).__name__ for make in CASES.values()}


def test_vmap_is_the_loop(make: Make) -> None:
    results = []
    for mode in ("vmap", "loop"):
        module = make(task_mode=mode)
        trial = first_trials(data_for(module))
        gradient = outer_gradient(module, trial)
        module.settle()
        results.append((gradient, tree_leaves(module.carried)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_the_hooks_change_nothing(make: Make) -> None:
    module = make()
    trial = trial_of(data_for(module), [0])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = {name: value[0] for name, value in module.begin(trial).params.items()}
    held = {name: value.clone() for name, value in weights.items()}
    support, query = Batch(*(part[0, 0] for part in trial.support)), Batch(*(part[0] for part in trial.query))
    values = [(module.inner_loss(weights, support), module.query_loss(weights, query).loss) for _ in range(2)]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    assert_equal(weights, held)
    assert_equal(dict(module.state_dict()), before)


def test_the_finite_difference_is_the_unrolled_gradient(make: Make) -> None:
    """Of one step at a small scale; where a loss has no constant that moves with the weights."""
    module = make()
    if not module.outer() or isinstance(module, MetaWeightNet):
        pytest.skip("no outer variables, or its weights are functions of detached losses")
    trial = first_trials(data_for(module, truncation=1))
    exact = outer_gradient(make(hypergradient=Unrolled()), trial)
    found = outer_gradient(make(hypergradient=FiniteDifference(1e-4)), trial)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-9)


def test_evaluation_keeps_no_graph_and_carries_nothing(make: Make) -> None:
    module = make()
    data = data_for(module)
    outer_gradient(module, first_trials(data))
    module.settle()
    carried = tree_map(torch.clone, module.carried)
    module.eval()
    module.on_test_start()
    judged = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf,
                      data.dataset("test").__getitems__([0, 1]))  # fmt: skip
    values, others = module.measure(judged)
    assert not any(leaf.requires_grad for leaf in tree_leaves((values, others)))
    assert_equal(tree_leaves(module.carried), tree_leaves(carried))


def test_training_stops_and_goes_on_exactly(make: Make, tmp_path: Path) -> None:
    finals = []
    for folder, ckpt in (("whole", None), ("rest", tmp_path / "whole" / "step=3.ckpt")):
        module = make(inner_optimizer=Momentum)
        saving = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer(callbacks=[saving], precision="64-true").fit(module, datamodule=data_for(module), ckpt_path=ckpt)
        finals.append(torch.load(tmp_path / folder / f"step={STEPS}.ckpt", weights_only=True))
    for part in ("state_dict", "optimizer_states", "carried", "global_step"):
        assert_equal(finals[1].get(part), finals[0].get(part), part)


# ---- what the module owns -------------------------------------------------------------------------------------------


def mwn(**settings: Any) -> MetaWeightNet:
    torch.manual_seed(0)
    return MetaWeightNet(network(), 4, hidden=5, **settings).double().train()


def test_the_steps_are_taken_under_the_new_outer_variables() -> None:
    """As in the papers: first the outer update, then the real step on the same batch."""
    module = mwn()
    trial = trial_of(held_out(), [0])
    module.measure(trial)
    with torch.no_grad():
        module.weigher[2].bias += 1.0
    before = {name: value[0] for name, value in module.carried.params.items()}
    batch = Batch(*(part[0, 0] for part in trial.support))
    gradient = torch.func.grad(lambda w: module.inner_loss(w, batch))(before)
    module.settle()
    for name, value in before.items():
        torch.testing.assert_close(module.carried.params[name][0], value - 0.1 * gradient[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", [Unrolled(), FirstOrder(), FiniteDifference(), Implicit(), Implicit("cg")], ids=repr)
def test_any_rule_and_any_inner_optimizer_train(rule: Any, tmp_path: Path) -> None:
    module = mwn(hypergradient=rule, inner_optimizer=Adam, inner_lr=0.01)
    run = trainer(precision="64-true", default_root_dir=tmp_path, enable_checkpointing=False, log_every_n_steps=1)
    run.fit(module, datamodule=held_out(truncation=2))
    logged = {*run.logged_metrics}
    (tested,) = run.test(module, datamodule=held_out(), verbose=False)
    assert 0 <= tested["test/acc"] <= 1
    assert ("train/last_term" in logged) == (isinstance(rule, Implicit) and rule.solver == "neumann")


def test_a_series_that_diverges_is_told() -> None:
    module = mwn(hypergradient=Implicit(rate=50.0))
    with pytest.warns(UserWarning, match=r"Neumann series .* diverges: after 10 terms .* Lower hypergradient.rate"):
        trainer(max_steps=1, precision="64-true", enable_checkpointing=False, log_every_n_steps=1).fit(
            module, datamodule=held_out()
        )


def test_a_retrained_evaluation_starts_anew(tmp_path: Path) -> None:
    """Each episode is a training of its own; the result does not depend on what is carried."""
    module = mwn()
    data = held_out(evaluate="retrained", unroll_steps=4, truncation=2, meta_batch_size=2)
    run = trainer(precision="64-true", default_root_dir=tmp_path)
    run.fit(module, datamodule=data)
    (tested,) = run.test(module, datamodule=data, verbose=False)
    module.carried = None
    (again,) = run.test(module, datamodule=data, verbose=False)
    assert again == tested and tested["test/acc_ci95"] > 0


def test_a_checkpoint_is_judged_as_the_training_was(tmp_path: Path) -> None:
    module, data = mwn(), held_out(meta_batch_size=2)
    run = trainer(precision="64-true", default_root_dir=tmp_path)
    run.fit(module, datamodule=data)
    (tested,) = run.test(module, datamodule=data, verbose=False)
    run.save_checkpoint(tmp_path / "trained.ckpt")
    loaded = MetaWeightNet.load_from_checkpoint(tmp_path / "trained.ckpt", backbone=network())
    (again,) = trainer(precision="64-true", default_root_dir=tmp_path).test(loaded, datamodule=data, verbose=False)
    assert again == pytest.approx(tested, abs=1e-12)
    with pytest.raises(ConfigError, match="there are none: train it"):
        trainer(precision="64-true").test(mwn(), datamodule=data, verbose=False)


def test_memory_does_not_grow_with_the_steps() -> None:
    """What is carried has no history: no graph hangs on weights or states of the optimizer."""
    module = mwn(inner_optimizer=Adam)
    data = held_out(truncation=2)
    for segment in range(3):
        outer_gradient(module, trial_of(data, [segment]))
        module.settle()
        assert all(leaf.grad_fn is None and not leaf.requires_grad for leaf in tree_leaves(module.carried))


def test_bfloat16_is_kept_out_of_the_inner_steps() -> None:
    """A finite difference of rounded weights would be noise: under bf16-mixed the outer gradient is that of fp32."""
    gradients = []
    for enabled in (False, True):
        module = MetaWeightNet(network(), 4, hidden=5, hypergradient=FiniteDifference())
        torch.manual_seed(0)
        for p in module.weigher.parameters():
            torch.nn.init.normal_(p, std=0.5)
        data = held_out()
        data.setup("fit")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = module.train().measure(data.dataset("train").__getitems__([0]))[0]["loss"].sum()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.weigher.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_what_cannot_be_played_is_told() -> None:
    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: mwn(compile_training=True), "cannot be compiled"),
        (lambda: MetaWeightNet(Conv4(image_size=SIZE, norm="running"), 4), "keep no running averages"),
        (lambda: trainer().fit(MetaWeightNet(network(), 3), datamodule=held_out()), "set model.n_classes to 4"),
        (
            lambda: trainer().fit(MetaWeightNet(MLP(9, [8]), 4), datamodule=held_out()),
            r"inputs of shape \(9,\), but Blobs has \(1, 16, 16\)",
        ),
        (lambda: trainer(accumulate_grad_batches=2).fit(mwn(), datamodule=held_out()), "data.truncation"),
        (lambda: held_out(evaluate="retrained"), "unroll_steps=null does not say how long"),
        (lambda: trainer().fit(mwn(), datamodule=held_out(unroll_steps=5, truncation=2)), "take 4"),
    ]
    for attempt, message in refusals:
        with pytest.raises(ConfigError, match=message):
            attempt()


def test_several_processes_have_nothing_to_learn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without outer variables, which torch would refuse in a sentence about something else."""
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda trainer: 2))
    with pytest.raises(
        ConfigError, match=r"FixedWeights has no outer variables for 2 processes .* trainer.devices to 1"
    ):
        trainer().fit(FixedWeights(network(), 4), datamodule=held_out())


def test_the_random_numbers_of_a_step_are_those_of_its_key() -> None:
    """The same in the steps that are differentiated and in those for good, and others in each step and training."""
    drawn: list[list[float]] = []

    class Noisy(FixedWeights):
        def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
            drawn.append(uniform(self.key, 3).tolist())
            return super().inner_loss(weights, batch)

    module = Noisy(network(), 4, task_mode="loop").double().train()
    data = held_out(truncation=2, meta_batch_size=2)
    trial = first_trials(data)
    module.measure(trial)
    module.settle()
    assert drawn[:4] == drawn[4:] and len({*map(tuple, drawn)}) == 4
    assert drawn[:4] == [uniform(key, 3).tolist() for key in trial.dice.flatten()]


def test_a_training_that_starts_anew_takes_its_steps_once() -> None:
    calls = []

    class Counted(FixedWeights):
        def train_on(self, progress: Progress, support: Step) -> Progress:
            calls.append(1)
            return super().train_on(progress, support)

    for evaluate, expected in (("retrained", 0), ("carried", 2)):
        calls.clear()
        data = held_out(truncation=2, unroll_steps=2, evaluate=evaluate, meta_batch_size=2)
        module = Counted(network(), 4, task_mode="vmap")
        trainer(max_steps=2, enable_checkpointing=False, limit_val_batches=0).fit(module, datamodule=data)
        assert len(calls) == expected and (module.carried is None) == (evaluate == "retrained")


def test_any_network_is_trained_inside(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 8), nn.ReLU(inplace=True))
    module = MetaWeightNet(Wrapped(plain, in_shape=(1, SIZE, SIZE)), 4, hidden=5)
    trainer(enable_checkpointing=False, default_root_dir=tmp_path).fit(module, datamodule=held_out())
    assert all(name.startswith(("backbone.network.", "head.")) for name in module.carried.params)


def test_the_algorithm_of_the_docs_learns(tmp_path: Path) -> None:
    """Its gradient is that of finite differences, and its training moves the outer variable."""
    page = (Path(__file__).parents[2] / "docs" / "bilevel.md").read_text()
    scope: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], scope)
    module = scope["LearnedSmoothing"](network(), 4).double().train()
    trial = trial_of(held_out(), [0])
    (found,) = outer_gradient(module, trial).values()
    values = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            module.raw += h
            values.append(module.measure(trial)[0]["loss"].mean().item())
            module.raw -= h
    assert found.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
    run = trainer(precision="64-true", default_root_dir=tmp_path, enable_checkpointing=False)
    run.fit(module, datamodule=held_out())
    assert module.raw.item() != -3
