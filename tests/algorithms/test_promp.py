"""ProMP: its first update is MAML's, the others are on the same trajectories, and what is far counts no more."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_meta.algorithms import MAMLRL, ProMP
from lightning_meta.compat import tree_map
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Continuous, Discrete, Navigation
from tests.algorithms.rollout_cases import navigation, processes, rollouts
from tests.modules.test_resume import assert_equal

SMALL: dict[str, Any] = dict(hidden=[8], activation="tanh")


def twice() -> Rollouts:
    return rollouts(Navigation(6), updates=2)


ROLLOUTS = {
    "promp": (lambda **kw: ProMP(2, Continuous(2), **SMALL, **kw), twice),
    "promp-discrete": (lambda **kw: ProMP(4, Discrete(3), divergence_weight=0.1, **SMALL, **kw), processes),
}


def in_double(trials: Any) -> Any:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, trials)


def made(kind: type[MAMLRL], **settings: Any) -> Any:
    torch.manual_seed(0)
    module = kind(2, Continuous(2), **SMALL, inner_lr=0.3, **settings).double().train()
    module.world = Navigation(6)
    return module


def gradient(module: MAMLRL, trials: Any) -> list[Tensor]:
    loss = module.measure(trials)[0]["loss"].mean()
    return [*torch.autograd.grad(loss, list(module.parameters()))]


def test_the_first_of_its_updates_is_that_of_maml() -> None:
    """All ratios are 1, so its gradient is that of MAML with LVC, second derivatives included."""
    trials = in_double(navigation().dataset("train").__getitems__([0, 1, 2]))
    promp, maml = made(ProMP, divergence_weight=0.5), made(MAMLRL, surrogate="lvc")
    for ours, theirs in zip(gradient(promp, trials), gradient(maml, trials), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert promp.measure(trials)[0]["moved"].abs().max() < 1e-12
    one = tree_map(lambda leaf: leaf[0], trials)
    pair = promp.play_rounds(*one)[1][-1].actor
    for name, value in pair.new.items():
        torch.testing.assert_close(value, pair.old[name])


def test_the_others_learn_from_the_same_trajectories() -> None:
    """Played by who was there at first; the loss, written out with torch's distributions."""
    module, trial = made(ProMP, divergence_weight=0.2), in_double(twice().dataset("train").__getitems__([0]))
    one = tree_map(lambda leaf: leaf[0], trial)
    first = module.play_rounds(*one)[1]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    out, rounds = module.play_rounds(*one)
    for before, now in zip(first, rounds, strict=True):
        assert torch.equal(before.actions, now.actions)

    def policy(params: dict[str, Tensor], seen: Tensor) -> torch.distributions.Distribution:
        mean, log_std = torch.func.functional_call(module.policy, params, (seen,)).chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    old, new, moved = module.old.tree, module.theta(), 0
    for played in rounds[:-1]:
        gains, seen = module.advantages(played), played.told.seen
        moved = moved + torch.distributions.kl_divergence(policy(old, seen), policy(new, seen)).mean()
        fixed = policy(old, seen).log_prob(played.actions).detach()
        stepped = []
        for params in (old, new):
            params = {name: value.detach().requires_grad_() for name, value in params.items()}
            loss = -((policy(params, seen).log_prob(played.actions) - fixed).exp() * gains).mean()
            slopes = torch.autograd.grad(loss, list(params.values()))
            stepped.append({name: p - 0.3 * slope for (name, p), slope in zip(params.items(), slopes, strict=True)})
        old, new = stepped
    query = rounds[-1]
    ratios = (
        policy(new, query.told.seen).log_prob(query.actions) - policy(old, query.told.seen).log_prob(query.actions)
    ).exp()
    gains = module.advantages(query)
    assert ((ratios - 1).abs() > 0.3).any() and ((ratios - 1).abs() < 0.3).any()
    clipped = torch.where(gains > 0, ratios.clamp(max=1.3), ratios.clamp(min=0.7))
    torch.testing.assert_close(out.loss, -(clipped * gains).mean() + 0.2 * moved)


def test_meta_batches_come_as_often_as_there_are_updates() -> None:
    once, twice_ = (rollouts(Navigation(6), updates=updates).dataset("train") for updates in (1, 2))
    first, second = once.__getitems__(range(4)), once.__getitems__(range(4, 8))  # meta-batches are of 4
    for batch, same in enumerate([first, first, second, second]):
        again = twice_.__getitems__(range(4 * batch, 4 * batch + 4))
        assert torch.equal(again.task, same.task) and torch.equal(again.query.world, same.query.world)
    test = [rollouts(Navigation(6), updates=updates).dataset("test").__getitems__(range(5)).task for updates in (1, 2)]
    assert torch.equal(*test)


def test_a_training_that_stopped_between_two_updates_goes_on_exactly(tmp_path: Path) -> None:
    """After the third step, the first of two on their trials: who plays is neither who begins nor who learns."""
    finals = []
    for folder, ckpt in (("whole", None), ("rest", tmp_path / "whole" / "step=3.ckpt")):
        saving = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        settings = dict(accelerator="cpu", inference_mode=False, logger=False, max_steps=4, precision="64-true")
        quiet = dict(enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, max_epochs=-1)
        run = pl.Trainer(**(settings | quiet), callbacks=[saving])  # type: ignore[arg-type]
        run.fit(made(ProMP), datamodule=twice(), ckpt_path=ckpt)
        finals.append(torch.load(tmp_path / folder / "step=4.ckpt", weights_only=True)["state_dict"])
    assert_equal(finals[1], finals[0])


def test_who_plays_changes_with_the_trials(tmp_path: Path) -> None:
    """At the start of every second update it is the policy of then."""

    class Watched(ProMP):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            pairs = zip(self.old.buffers(), self.theta().values(), strict=True)
            same.append(all(torch.equal(old, new) for old, new in pairs))

    same: list[bool] = []
    settings = dict(accelerator="cpu", inference_mode=False, logger=False, enable_checkpointing=False, max_steps=6)
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, max_epochs=-1)
    pl.Trainer(**(settings | quiet)).fit(Watched(2, Continuous(2), **SMALL), datamodule=twice())  # type: ignore[arg-type]
    assert same == [True, False] * 3


def test_divergences_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 4, generator=generator).double()
    categorical = [torch.distributions.Categorical(logits=scores) for scores in (one, other)]
    torch.testing.assert_close(Discrete(4).divergence(one, other), torch.distributions.kl_divergence(*categorical))
    normal = [
        torch.distributions.Independent(torch.distributions.Normal(scores[:, :2], scores[:, 2:].exp()), 1)
        for scores in (one, other)
    ]
    torch.testing.assert_close(Continuous(2).divergence(one, other), torch.distributions.kl_divergence(*normal))


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match=r"clip=1.5 must lie between 0 and 1"):
        ProMP(2, Continuous(2), clip=1.5)
    with pytest.raises(ConfigError, match=r"updates=0 must be at least 1"):
        rollouts(Navigation(6), updates=0)
