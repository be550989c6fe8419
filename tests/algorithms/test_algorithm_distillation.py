"""Algorithm Distillation: in training the source plays, in evaluation its imitation, which learns what it would do."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_meta.algorithms import RL2, UCB, AlgorithmDistillation, EpsilonGreedy, Random, Thompson
from lightning_meta.compat import tree_map
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Bandits, Continuous, Discrete, Navigation, TabularMDP
from tests.algorithms.rollout_cases import arms, processes

ROLLOUTS = {
    "algorithm-distillation": (
        lambda **kw: AlgorithmDistillation(1, Discrete(3), Thompson(3, 50), context=8, width=8, **kw), arms,
    ),
    "algorithm-distillation-of-a-learner": (
        lambda **kw: AlgorithmDistillation(4, Discrete(3), RL2(4, Discrete(3), hidden=4), context=15, width=8, **kw),
        processes,
    ),
}  # fmt: skip


def one(data: Rollouts) -> tuple:
    return tuple(tree_map(lambda leaf: leaf[0], part) for part in data.dataset("test").__getitems__([0]))


@pytest.mark.parametrize("case", ROLLOUTS)
def test_in_training_the_source_plays_through_all_rounds_as_it_would_alone(case: str) -> None:
    torch.manual_seed(0)
    make, data = ROLLOUTS[case][0], ROLLOUTS[case][1]()
    module = make()
    module.check_world(data.world)
    module.world = data.world
    shown, alone = module.play_rounds(*one(data))[1], module.source.play_rounds(*one(data))[1]
    for ours, theirs in zip(shown, alone, strict=True):
        assert torch.equal(ours.actions, theirs.actions)
    lesson = module.adapt(shown[-1])
    assert torch.equal(lesson.right, torch.cat([round.actions for round in alone]))
    with torch.no_grad():
        (imitated, *_), alone = module.eval().play_rounds(*one(data))[1], alone
    assert not torch.equal(imitated.actions, alone[0].actions)
    assert not any(parameter.requires_grad for parameter in module.source.parameters())


@torch.no_grad()
def test_what_acts_step_by_step_knows_the_place_of_each_step() -> None:
    torch.manual_seed(0)
    module, data = ROLLOUTS["algorithm-distillation-of-a-learner"][0]().eval(), processes()
    module.world = module.source.world = data.world
    rounds = module.play_rounds(*one(data))[1]
    told = tree_map(lambda *parts: torch.cat(parts), *(round.told for round in rounds))
    scores = module.scores(module.transformer(module.rows(told))[0]).transpose(0, 1)
    dice = torch.cat([*one(data)[1].actor, one(data)[2].actor])
    expected = (scores.softmax(-1).cumsum(-1) < dice).sum(-1).clamp_max(2)
    assert torch.equal(torch.cat([round.actions for round in rounds]), expected)
    rows = module.rows(told)
    torch.testing.assert_close(rows - module.places, super(type(module), module).rows(told))


def test_it_learns_what_its_source_would_do() -> None:
    """The greedy player is a function of the history: how often the imitation takes another arm than that would."""
    torch.manual_seed(0)
    data = Rollouts(Bandits(2, 6), rounds=0, trajectories=1, meta_batch_size=100)
    module = AlgorithmDistillation(
        1, Discrete(2), EpsilonGreedy(2), context=6, width=16, layers=1,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=120, max_epochs=-1, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)

    @torch.no_grad()
    def differs(player: EpsilonGreedy | UCB) -> float:
        """On the histories of the imitation itself, from the second pull on."""
        (round,) = module.eval().record(data.dataset("test").__getitems__(range(500)))
        told = tree_map(lambda leaf: leaf[:, :, 0].transpose(0, 1), round.told)  # trials as trajectories
        memory, others = None, []
        for step in range(6):
            now = tree_map(lambda leaf, s=step: leaf[s], told)
            action, memory = player.act(None, memory, now, torch.full((500, 1), 0.5))
            others.append(action != round.actions[:, step, 0])
        return torch.stack(others[1:]).float().mean().item()

    assert differs(EpsilonGreedy(2)) < 0.05
    assert differs(UCB(2, weight=5.0)) > 0.2, "another player is told from it"


def test_what_cannot_be_distilled_is_told() -> None:
    module = AlgorithmDistillation(1, Discrete(3), Thompson(3), context=7)
    with pytest.raises(ConfigError, match=r"context=7 is shorter than the 1 x 8 steps of a trial; set .* to 8"):
        pl.Trainer(accelerator="cpu", max_steps=1, inference_mode=False, logger=False).fit(module, datamodule=arms())
    with pytest.raises(ConfigError, match="Thompson counts what Bernoulli arms pay"):
        AlgorithmDistillation(1, Discrete(3), Thompson(3)).check_world(
            type("Seen", (TabularMDP,), {"__init__": lambda self: TabularMDP.__init__(self, 1, 3)})()
        )
    with pytest.raises(ConfigError, match="takes actions"):
        AlgorithmDistillation(2, Discrete(3), Random(2, Continuous(2))).check_world(Navigation())
