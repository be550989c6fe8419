"""Meta-critic networks: actors climb what the critic says, and the critic is right about arms that it has read of."""

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_meta.algorithms import MetaCritic
from lightning_meta.compat import tree_map
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import Rollouts
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Bandits, CartPole, Continuous, DirichletBandits, Discrete
from tests.algorithms.rollout_cases import arms, processes, rollouts

SMALL: dict[str, Any] = dict(actor_hidden=[6], critic_hidden=[8], reader_hidden=5, inner_steps=2)
ROLLOUTS = {
    "meta-critic": (lambda **kw: MetaCritic(1, Discrete(3), **SMALL, **kw), arms),
    "meta-critic-returns": (
        lambda **kw: MetaCritic(4, Discrete(3), discount=0.9, eval_inner_steps=4, **SMALL, **kw), processes,
    ),
}  # fmt: skip


def bayes(won: Tensor, lost: Tensor) -> Tensor:
    """What the best arm of two is worth to somebody who saw so many wins and losses of each, `(..., 2)`.

    The chances are p and 1 - p: a loss of one arm is a win of the other.
    """
    for_first, for_second = won[..., 0] + lost[..., 1], won[..., 1] + lost[..., 0]
    first = (1 + for_first) / (2 + for_first + for_second)
    return torch.maximum(first, 1 - first)


def test_an_actor_takes_steps_of_adam_on_what_the_critic_expects_of_it() -> None:
    """With torch's own network, optimizer and autograd."""
    torch.manual_seed(0)
    module = MetaCritic(4, Discrete(2), actor_hidden=[7], inner_steps=3, inner_lr=0.1, discount=0.9).double().train()
    data = rollouts(CartPole(0.1, 0.2, horizon=30), rounds=1)
    module.world = data.world
    trial = tree_map(lambda leaf: leaf[0].double(), data.dataset("train").__getitems__([1]))
    played = module.play_rounds(*trial)[1][0]
    assert 0 < played.alive.mean() < 1, "some of it is over before the end"
    actor = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2)).double()
    names = {"0.weight": "0.weight", "0.bias": "0.bias", "1.weight": "2.weight", "1.bias": "2.bias"}
    actor.load_state_dict({theirs: played.actor.weights[ours].detach() for ours, theirs in names.items()})
    adapted, alive = module.adapt(played), played.alive > 0
    seen, task = played.told.seen[alive], adapted.task.detach()
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        values = module.critic(torch.cat([seen, task.expand(len(seen), 3)], 1)).detach()
        (-(actor(seen).softmax(-1) * values).sum(-1).mean()).backward()
        optimizer.step()
    for ours, theirs in names.items():
        torch.testing.assert_close(adapted.weights[ours], actor.state_dict()[theirs])
        assert not adapted.weights[ours].requires_grad, "the critic is not taught through an actor"


def test_the_critic_is_taught_what_every_round_paid() -> None:
    """The loss, written out: each round's returns, by what was read of the round before."""
    torch.manual_seed(0)
    module, data = MetaCritic(4, Discrete(3), discount=0.9, **SMALL).double().train(), processes()
    module.world = data.world
    trial = tree_map(lambda leaf: leaf[0].double() if leaf.is_floating_point() else leaf[0],
                     data.dataset("train").__getitems__([2]))  # fmt: skip
    out, rounds = module.play_rounds(*trial)
    errors, task = [], module.task(torch.zeros(5).double())
    for played in rounds:
        for place in range(3):
            for step in range(5):
                paid = sum(0.9**ahead * played.rewards[step + ahead, place] for ahead in range(5 - step))
                said = module.critic(torch.cat([played.told.seen[step, place], task])[None])
                errors.append((said[0, played.actions[step, place]] - paid) ** 2)
        task = module.read(played)
    torch.testing.assert_close(out.loss, torch.stack(errors).mean())


def test_what_comes_after_the_end_of_a_trajectory_is_not_read() -> None:
    torch.manual_seed(0)
    module, data = MetaCritic(4, Discrete(2), **SMALL).double(), rollouts(CartPole(0.1, 0.2, horizon=30), rounds=1)
    module.world = data.world
    trial = tree_map(lambda leaf: leaf[0].double(), data.dataset("train").__getitems__([1]))
    played = module.play_rounds(*trial)[1][0]
    alive = played.alive > 0
    assert not alive.all()
    other = played._replace(
        told=played.told._replace(seen=torch.where(alive[..., None], played.told.seen, 5.0)),
        actions=torch.where(alive, played.actions, 1 - played.actions),
    )
    for ours, theirs in zip(module.adapt(played)[1:], module.adapt(other)[1:], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_task_has_a_new_actor_whose_weights_are_drawn_as_those_of_torch() -> None:
    module, data = MetaCritic(1, Discrete(3)), arms()
    trials = data.dataset("train").__getitems__(range(200))
    actors = torch.vmap(lambda world, actor: module.start(Dice(world, actor)).weights)(*trials.query)
    for name, bound in {"0.weight": 1.0, "1.bias": 40**-0.5, "2.weight": 40**-0.5}.items():
        weights = actors[name]
        assert weights.abs().max() <= bound and weights.abs().max() > 0.99 * bound
        assert weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert len(weights.flatten(1).unique(dim=0)) == 200


def test_dirichlet_arms_are_as_uneven_as_they_should_be() -> None:
    """The largest of two is worth 3/4, of four 25/48: the mean of the largest part of a broken stick."""
    for count, best in {2: 3 / 4, 4: 25 / 48}.items():
        chances = DirichletBandits(count).draw(episode_keys(0, 0, range(20_000)))
        torch.testing.assert_close(chances.sum(-1), torch.ones(20_000))
        assert chances.max(-1).values.mean().item() == pytest.approx(best, abs=0.004)


@pytest.mark.slow
def test_it_pulls_the_better_arm_as_often_as_bayes_would() -> None:
    """Of what the best there is earns beyond chance, on the same pulls, it earns nearly all; and not more."""
    torch.manual_seed(0)
    sizes = dict(meta_batch_size=50, test_episodes=2000, eval_meta_batch_size=1000)
    data = Rollouts(DirichletBandits(2, 10), rounds=2, eval_rounds=1, trajectories=1, **sizes)  # type: ignore[arg-type]
    module = MetaCritic(
        1, Discrete(2), optimizer=partial(torch.optim.Adam, lr=0.01), inner_steps=4, eval_inner_steps=60
    )
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    settings = dict(max_steps=400, max_epochs=-1, accelerator="cpu", inference_mode=False, limit_val_batches=0)
    pl.Trainer(**(quiet | settings)).fit(module, datamodule=data)  # type: ignore[arg-type]
    trials = data.dataset("test").__getitems__(range(2000))
    module.eval()
    with torch.no_grad():
        first, second = module.record(trials)
    pulled = torch.nn.functional.one_hot(first.actions, 2)[:, :, 0].float()
    won = (pulled * first.rewards).sum(1)
    best = bayes(won, pulled.sum(1) - won)
    chosen = trials.task.gather(1, second.actions[:, :, 0]).mean(1)  # its chance, which has less noise than its pay
    assert (best - chosen).mean() > -4 * (best - chosen).std() / 2000**0.5
    assert (chosen.mean() - 0.5) / (best.mean() - 0.5) > 0.85


def test_what_it_cannot_do_is_told() -> None:
    with pytest.raises(ConfigError, match=r"but Continuous\(n=2\) are not a few; take Discrete"):
        MetaCritic(2, Continuous(2))
    with pytest.raises(ConfigError, match=r"discount=1.5 must lie between 0 and 1"):
        MetaCritic(2, Discrete(2), discount=1.5)
    with pytest.raises(ConfigError, match=r"inner_steps=-1 must be at least 0"):
        MetaCritic(2, Discrete(2), inner_steps=-1)
    assert isinstance(DirichletBandits(), Bandits)
