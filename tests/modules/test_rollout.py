"""What every algorithm of reinforcement learning promises, and what the module owns: trials, rounds, errors."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_meta import algorithms
from lightning_meta.algorithms import MAMLRL, RL2, Oracle
from lightning_meta.compat import tree_leaves, tree_map
from lightning_meta.datamodules import Rollouts, RolloutTrial
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError, DivergenceError
from lightning_meta.modules import RolloutModule
from lightning_meta.worlds import Bandits, Continuous, Discrete, Navigation
from tests.algorithms.rollout_cases import arms, navigation, rollouts
from tests.modules.test_resume import assert_equal

Make = Callable[..., RolloutModule]
FILES = sorted((Path(algorithms.__file__).parent / "reinforcement").glob("[a-z]*.py"))
CASES: dict[str, tuple[Make, Callable[[], Rollouts]]] = {}
for file in FILES:
    CASES |= import_module(f"tests.algorithms.test_{file.stem}").ROLLOUTS
STEPS = 4


def trainer(**settings: Any) -> pl.Trainer:
    plain = dict(max_steps=STEPS, max_epochs=-1, accelerator="cpu", inference_mode=False, logger=False)
    quiet = dict(num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False)
    return pl.Trainer(**(plain | quiet | settings))


def trials_of(data: Rollouts, ids: list[int], split: Any = "train") -> RolloutTrial:
    return tree_map(
        lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, data.dataset(split).__getitems__(ids)
    )


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data(case: str) -> Rollouts:
    return CASES[case][1]()


@pytest.fixture
def make(case: str, data: Rollouts) -> Make:
    def seeded(**settings: Any) -> RolloutModule:
        torch.manual_seed(0)
        module = CASES[case][0](**settings).double().train()
        module.world = data.world
        return module

    return seeded


def outer_gradient(module: RolloutModule, trials: RolloutTrial) -> dict[str, Tensor]:
    module.zero_grad()
    loss = module.measure(trials)[0]["loss"].mean()
    if loss.requires_grad:
        loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# ---- the contract ---------------------------------------------------------------------------------------------------


def test_every_algorithm_has_a_case() -> None:
    classes = {name for name in algorithms.__all__ if issubclass(getattr(algorithms, name), RolloutModule)}
    assert classes == {type(make()).__name__ for make, _ in CASES.values()}


@pytest.mark.parametrize("chunk_size", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_vmap_is_the_loop(make: Make, data: Rollouts, chunk_size: int | None) -> None:
    trials, results = trials_of(data, [0, 5, 9]), []
    for mode in ("vmap", "loop"):
        module = make(task_mode=mode, task_chunk_size=chunk_size)
        results.append((outer_gradient(module, trials), module.measure(trials)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
    if any(parameter.requires_grad for parameter in make().parameters()):
        assert max(gradient.abs().max() for gradient in results[0][0].values()) > 1e-4


@torch.no_grad()
def test_a_trial_alone_is_the_trial_in_a_batch(make: Make, data: Rollouts) -> None:
    """Action by action, whatever it is drawn and played beside."""
    module = make()
    together = module.record(trials_of(data, [0, 5, 9]))
    for place, number in enumerate((0, 5, 9)):
        for ours, theirs in zip(module.record(trials_of(data, [number])), together, strict=True):
            torch.testing.assert_close(ours.actions[0], theirs.actions[place], rtol=1e-10, atol=1e-12)


def test_the_hooks_change_nothing_and_play_the_same_again(make: Make, data: Rollouts) -> None:
    module, trials = make(), trials_of(data, [0, 1])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.testing.assert_close(module.measure(trials), module.measure(trials), rtol=0, atol=0)
    assert_equal(dict(module.state_dict()), before)


def test_no_reward_is_differentiated_by_what_led_to_it(make: Make, data: Rollouts) -> None:
    """A gradient through `mean + deviation * dice` into the world would be another, silent one."""
    module, (task, support, query) = make(), tree_map(lambda leaf: leaf[0], trials_of(data, [0]))
    for played in module.play_rounds(task, support, query)[1]:
        recorded = (played.told, played.actions, played.rewards, played.alive)
        assert not any(leaf.requires_grad for leaf in tree_leaves(recorded))


def test_evaluation_keeps_no_graph(make: Make, data: Rollouts) -> None:
    with torch.no_grad():
        values, others = make().eval().measure(trials_of(data, [0, 1], "test"))
    assert not any(leaf.requires_grad for leaf in tree_leaves((values, others)))


def test_fit_validate_test(make: Make, data: Rollouts, tmp_path: Path) -> None:
    module = make()
    before = [p.detach().clone() for p in module.parameters()]
    run = trainer(precision="64-true", default_root_dir=tmp_path, enable_checkpointing=False, log_every_n_steps=1)
    if before:
        run.fit(module, datamodule=data)
        assert {"train/loss", "train/return", "val/return", "val/return_ci95"} <= run.callback_metrics.keys()
        assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    (tested,) = run.test(module, datamodule=data, verbose=False)
    with torch.no_grad():
        values = module.eval().measure(trials_of(data, [0, 1, 2, 3, 4], "test"))[0]
    for name in ("return", "return_0", "total_return"):
        assert tested[f"test/{name}"] == pytest.approx(values[name].mean().item(), abs=1e-5)
        assert tested[f"test/{name}_ci95"] == pytest.approx(1.96 * values[name].std().item() / 5**0.5, abs=1e-5)
    data.eval_meta_batch_size = 5
    (again,) = run.test(module, datamodule=data, verbose=False)
    assert again == pytest.approx(tested, abs=1e-6)
    assert "val/return" in run.validate(module, datamodule=data, verbose=False)[0]


def test_training_stops_and_goes_on_exactly(make: Make, data: Rollouts, tmp_path: Path) -> None:
    if not list(make().parameters()):
        pytest.skip("nothing to train")
    finals = []
    for folder, ckpt in (("whole", None), ("rest", tmp_path / "whole" / "step=2.ckpt")):
        saving = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(callbacks=[saving], precision="64-true", limit_val_batches=0)
        run.fit(make(), datamodule=data, ckpt_path=ckpt)
        finals.append(torch.load(tmp_path / folder / f"step={STEPS}.ckpt", weights_only=True))
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_equal(finals[1][part], finals[0][part], part)


# ---- trials ---------------------------------------------------------------------------------------------------------


def test_rounds_that_are_added_leave_the_others_as_they_were() -> None:
    few, many = (rollouts(Navigation(6), eval_rounds=rounds).dataset("test").__getitems__([4]) for rounds in (1, 3))
    assert many.support.world.shape == (1, 3, 6, 3, 1) and few.support.actor.shape == (1, 1, 6, 3, 2)
    for ours, theirs in zip(few.support, many.support, strict=True):
        assert torch.equal(ours, theirs[:, :1])
    assert_equal(tree_leaves((few.task, few.query)), tree_leaves((many.task, many.query)))


def test_dice_are_uniform_and_those_of_splits_rounds_and_actors_differ() -> None:
    data = rollouts(Navigation(6), trajectories=200)
    dice = [data.dataset(split).__getitems__([0]) for split in ("train", "val", "test")]
    leaves = [leaf for trial in dice for leaf in tree_leaves((trial.support, trial.query))]
    firsts = torch.cat([leaf.flatten()[:50] for leaf in leaves])
    assert len(firsts.unique()) > 0.99 * len(firsts)
    everything = torch.cat([leaf.flatten() for leaf in leaves])
    assert everything.min() > 0 and everything.max() < 1
    assert everything.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / len(everything)) ** 0.5)
    assert torch.special.ndtri(everything).isfinite().all()


# ---- rounds ---------------------------------------------------------------------------------------------------------


class Countdown(Bandits):
    """One that pays 1 in every step and ends after as many as the chosen arm says."""

    def start(self, task: Any, dice: Tensor) -> Tensor:
        return torch.zeros_like(dice)

    def step(self, task: Any, state: Tensor, action: Tensor, dice: Tensor) -> Any:
        state = state + 1
        return state, torch.ones_like(dice[:, 0]), state[:, 0] > action


class Always(RolloutModule):
    """Takes the first arm in the first trajectory, the second in the second, and so on."""

    def start(self, dice: Dice) -> Tensor:
        return torch.arange(3)

    def act(self, actor: Tensor, memory: Any, told: Any, dice: Tensor) -> tuple[Tensor, Any]:
        return actor, memory

    def query_loss(self, adapted: Any, query: Any) -> Any:
        raise NotImplementedError


def test_nothing_is_earned_after_the_end_of_a_trajectory() -> None:
    module = Always(1, Discrete(3))
    module.world = Countdown(3, 5)
    played = module.collect(module.start(None), None, Dice(torch.rand(5, 3, 1), torch.rand(5, 3, 1)))
    assert played.rewards.sum(0).tolist() == [1, 2, 3]
    assert played.alive.T.tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


def test_only_what_is_alive_counts_in_training() -> None:
    """What would come after the end of a trajectory changes no gradient."""
    for module in (MAMLRL(1, Discrete(3), hidden=[4]), RL2(1, Discrete(3), hidden=4)):
        module.world, gradients = Countdown(3, 5), []
        trial = rollouts(Bandits(3, 5), trajectories=4).dataset("train").__getitems__([0])
        played = module.collect(module.start(tree_map(lambda leaf: leaf[0], trial.query)), None,
                                tree_map(lambda leaf: leaf[0], trial.query))  # fmt: skip
        assert 0 < played.alive.mean() < 1
        for changed in (played, played._replace(actions=torch.where(played.alive > 0, played.actions, 2))):
            module.zero_grad()
            module.query_loss(played.actor, changed).loss.backward()
            gradients.append([p.grad.clone() for p in module.parameters()])
        torch.testing.assert_close(*gradients)


def test_the_world_of_the_docs_is_learned(tmp_path: Path) -> None:
    """RL^2 tries an end in the first walk, which pays in one of two, and knows in the second."""
    page = (Path(__file__).parents[2] / "docs" / "reinforcement.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    scope: dict[str, Any] = {}
    exec(blocks[0], scope)
    settings = 'accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0'
    torch.manual_seed(0)
    exec(blocks[1].replace("pl.Trainer(", f"pl.Trainer({settings}, "), scope)
    assert abs(scope["tested"]["test/return_0"] - 0.5) < 0.1
    assert scope["tested"]["test/return_1"] > 0.9
    oracle = Oracle(1, Discrete(2))
    (best,) = trainer().test(oracle, datamodule=scope["data"], verbose=False)
    assert best["test/return_0"] > 0.99, "somebody who knows it needs no trial"


# ---- refusals -------------------------------------------------------------------------------------------------------


class Impure(Bandits):
    def step(self, task: Any, state: Tensor, action: Tensor, dice: Tensor) -> Any:
        if dice[0, 0].item() < 2:
            return super().step(task, state, action, dice)


class Unpaid(Bandits):
    def step(self, task: Any, state: Tensor, action: Tensor, dice: Tensor) -> Any:
        state, reward, over = super().step(task, state, action, dice)
        return state, reward / 0 * 0, over


class Endless(Bandits):
    """One that was never told how long it is."""

    horizon = property(lambda self: 0, lambda self, value: None)  # type: ignore[assignment]


def fit(module: RolloutModule, world: Any, **settings: Any) -> None:
    trainer(enable_checkpointing=False, **settings).fit(module, datamodule=rollouts(world))


def test_what_cannot_be_played_is_told() -> None:
    def rl2(**settings: Any) -> RL2:
        return RL2(1, Discrete(3), hidden=4, **settings)

    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: fit(rl2(), Impure(3, 4)), "RL2 in Impure cannot be vectorised .* set model.task_mode to loop"),
        (lambda: fit(rl2(), Unpaid(3, 4)), "Unpaid gave a reward that is not finite"),
        (lambda: fit(rl2(), Navigation(4)), r"takes actions Discrete\(n=3\), but .* are Continuous\(n=2\)"),
        (lambda: fit(rl2(), Bandits(4, 4)), r"actions Discrete\(n=3\), but those of 4 arms are Discrete\(n=4\)"),
        (lambda: fit(RL2(2, Discrete(3)), Bandits(3)), "sees seen_size=2 numbers, but 3 arms shows 1"),
        (lambda: fit(rl2(), Bandits(3), precision="bf16-mixed"), "would round the ratios"),
        (lambda: rl2(discount=1.5), "discount=1.5 and gae_lambda=1.0 must lie between 0 and 1"),
        (lambda: rollouts(Navigation(4), rounds=-1), "rounds=-1 must be at least 0"),
        (lambda: rollouts(Endless(3, 4)), "horizon=0 must be at least 1"),
        (lambda: rollouts(Navigation(4), trajectories=0), "trajectories=0 must be at least 1"),
        (lambda: rl2().measure(arms().dataset("train").__getitems__([0])), "give it a Trainer with Rollouts"),
    ]
    for attempt, message in refusals:
        with pytest.raises(ConfigError, match=message) as told:
            attempt()
        assert "\n" not in str(told.value)


def test_a_world_that_cannot_be_vectorised_is_looped_over(tmp_path: Path) -> None:
    fit(RL2(1, Discrete(3), hidden=4, task_mode="loop"), Impure(3, 4))


def test_a_policy_that_has_diverged_is_told_from_a_world_that_is_wrong() -> None:
    module = MAMLRL(2, Continuous(2), hidden=[4])
    module.world = Navigation(6)
    with torch.no_grad():
        module.policy.log_std.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="lower its learning rate"):
        module.measure(navigation().dataset("train").__getitems__([0]))
