"""DPT: it is taught what is right, reads while acting what it was trained on, and learns the posterior."""

import pytest
import pytorch_lightning as pl
import torch
from scipy import stats

from lightning_meta.algorithms import DPT, Oracle, Thompson
from lightning_meta.compat import tree_map
from lightning_meta.core.sampling import episode_keys, uniform
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import Told, Trajectories
from lightning_meta.worlds import Bandits, Continuous, Discrete, World
from tests.algorithms.rollout_cases import arms, processes

ROLLOUTS = {
    "dpt": (lambda **kw: DPT(1, Discrete(3), width=8, **kw), arms),
    "dpt-processes": (lambda **kw: DPT(4, Discrete(3), width=8, layers=1, concentration=0.5, **kw), processes),
}


def one(data: Rollouts, number: int = 0) -> tuple:
    return tuple(tree_map(lambda leaf: leaf[0], part) for part in data.dataset("test").__getitems__([number]))


def played(module: DPT, data: Rollouts) -> tuple[list[Trajectories], Told]:
    """The rounds of a trial, and what was told in all of them."""
    module.world = data.world
    rounds = module.play_rounds(*one(data))[1]
    return rounds, tree_map(lambda *parts: torch.cat(parts), *(round.told for round in rounds))


@torch.no_grad()
def test_what_acts_step_by_step_is_the_network_read_at_once() -> None:
    """Over three rounds, which are one context; the row of a step is written here once more."""
    torch.manual_seed(0)
    module, data = DPT(4, Discrete(3), width=8).eval(), processes()
    rounds, told = played(module, data)
    before = torch.cat([torch.zeros(1, 3, 4), told.seen[:-1]])
    row = torch.cat([before, told.action, told.reward[..., None], told.seen, told.fresh[..., None]], -1)
    scores = module.scores(module.transformer(module.embed(row).transpose(0, 1))[0]).transpose(0, 1)
    dice = torch.cat([*one(data)[1].actor, one(data)[2].actor])
    expected = (scores.softmax(-1).cumsum(-1) < dice).sum(-1).clamp_max(2)
    assert len(expected.unique()) == 3
    assert torch.equal(torch.cat([round.actions for round in rounds]), expected)
    module.greedy = True
    assert torch.equal(module.act(rounds[0].actor, None, tree_map(lambda leaf: leaf[0], told), dice[0])[0],
                       scores[0].argmax(-1))  # fmt: skip


def test_it_is_taught_what_somebody_would_do_who_knows_the_task() -> None:
    """The lesson of an oracle's trajectories is what the oracle did, with the steps that were left."""
    oracle, module, data = Oracle(4, Discrete(3)), DPT(4, Discrete(3), width=8), processes()
    rounds = played(oracle, data)[0]
    module.world = data.world
    task, _, query = one(data)
    lesson = module.adapt(rounds[0]._replace(actor=module.begin(task, query)))
    lesson = module.adapt(rounds[1]._replace(actor=lesson))
    assert torch.equal(lesson.right, torch.cat([round.actions for round in rounds[:2]]))
    assert len(lesson.right.unique()) > 1


@torch.no_grad()
def test_whoever_acts_does_not_look_at_the_task() -> None:
    module, (task, _, query) = DPT(1, Discrete(3), width=8).eval(), one(arms())
    module.world, lesson = arms().world, module.begin(task, query)
    played = [module.collect(actor, task, query) for actor in (lesson, lesson._replace(teacher=-task))]
    assert torch.equal(played[0].actions, played[1].actions)


def test_training_takes_actions_with_frequencies_of_a_dirichlet_distribution() -> None:
    """With concentration 1 and two actions, every number of first ones in ten is equally likely."""
    module, counts, taken = DPT(1, Discrete(2)), None, []
    dice = torch.from_numpy(uniform(episode_keys(0, 9, range(20_000)), 10))
    for step in range(10):
        action, counts = module.demonstrate(None, counts, None, dice[:, step, None])
        taken.append(action)
    found = torch.bincount(torch.stack(taken).sum(0), minlength=11)
    assert stats.chisquare(found.numpy()).pvalue > 0.001


def test_the_loss_is_the_cross_entropy_of_what_is_best_and_nothing_after_the_end_counts() -> None:
    module, data = DPT(1, Discrete(3), width=8), arms()
    rounds, told = played(module, data)
    task, last = one(data)[0], rounds[-1]
    scores = module.scores(module.transformer(module.rows(told))[0])[0]
    chances = scores.softmax(-1)[:, task.argmax()]
    torch.testing.assert_close(module.query_loss(last.actor, last).loss, -chances.log().mean())
    ended = last._replace(alive=(torch.arange(8) < 3).float()[:, None])
    torch.testing.assert_close(module.query_loss(last.actor, ended).loss, -chances[:3].log().mean())


def test_it_learns_the_posterior_that_thompson_sampling_samples_from() -> None:
    """The chances that an arm is the best, in contexts of test trials, against their integrals."""
    torch.manual_seed(0)
    data = Rollouts(Bandits(2, 5), rounds=0, trajectories=1, meta_batch_size=100)
    module = DPT(1, Discrete(2), width=16, layers=1, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=120, max_epochs=-1, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip

    @torch.no_grad()
    def furthest() -> float:
        """Total variation from the exact chances, on average."""
        module.world = data.world
        (round,) = module.train().record(data.dataset("test").__getitems__(range(300)))
        scores = torch.vmap(lambda told: module.scores(module.transformer(module.rows(told))[0]))(round.told)
        pulled, paid = round.told.action[:, :, 0], round.told.reward
        won, lost = (pulled * paid).cumsum(1), (pulled * (1 - paid)).cumsum(1)
        exact = Thompson(2).chances(won.flatten(0, 1), lost.flatten(0, 1)).view(won.shape)
        return (scores[:, 0].softmax(-1) - exact).abs().sum(-1).mean().item() / 2

    before = furthest()
    trainer.fit(module, datamodule=data)
    assert furthest() < 0.05 < before / 2


def test_what_cannot_be_taught_is_told() -> None:
    class Unknown(Bandits):
        best = World.best

    with pytest.raises(ConfigError, match=r"Continuous\(n=2\) cannot be counted; take Discrete"):
        DPT(2, Continuous(2))
    with pytest.raises(ConfigError, match="concentration=0 must be above 0"):
        DPT(1, Discrete(2), concentration=0)
    with pytest.raises(ConfigError, match="write the method `best` of 3 arms"):
        DPT(1, Discrete(3)).check_world(Unknown(3))
