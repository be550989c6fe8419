"""RL^2: its loss is over the whole trial, and it learns to remember."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_meta.algorithms import RL2
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import Told
from lightning_meta.worlds import Bandits, Continuous, Discrete
from lightning_meta.worlds.bandits import bayes_optimal_return
from tests.algorithms.rollout_cases import arms, navigation, processes

ROLLOUTS = {
    "rl2": (lambda **kw: RL2(1, Discrete(3), hidden=6, **kw), arms),
    "rl2-processes": (lambda **kw: RL2(4, Discrete(3), hidden=6, gae_lambda=0.9, **kw), processes),
    "rl2-navigation": (lambda **kw: RL2(2, Continuous(2), hidden=6, **kw), navigation),
}


def test_what_was_read_again_is_what_acted_and_the_state_outlives_episodes() -> None:
    """The log-probabilities of a trial of three episodes, by one pass over all its steps from a zero state."""
    torch.manual_seed(0)
    module, data = RL2(4, Discrete(3), hidden=6), processes()
    module.world = data.world
    task, support, query = (
        torch.utils._pytree.tree_map(lambda leaf: leaf[0], part) for part in data.dataset("train").__getitems__([2])
    )
    rounds = module.play_rounds(task, support, query)[1]
    state, log_probs = torch.zeros(3, 6), []
    for played in rounds:
        for step, told in enumerate(zip(*played.told, strict=True)):
            state = module.read(state, Told(*told))
            logits = module.outputs(state)[:, :-1]
            log_probs.append(torch.distributions.Categorical(logits=logits).log_prob(played.actions[step]))
    stream = module.adapt(rounds[-1])
    torch.testing.assert_close(stream.log_probs, torch.stack(log_probs))
    torch.testing.assert_close(stream.rewards, torch.cat([played.rewards for played in rounds]))
    last, first = rounds[0], rounds[1].told
    torch.testing.assert_close(first.action[0], nn.functional.one_hot(last.actions[-1], 3).float())
    torch.testing.assert_close(first.reward[0], last.rewards[-1])
    assert first.fresh[:, 0].tolist() == [1, 0, 0, 0, 0]


def test_the_policy_gradient_is_that_of_a_return_that_is_known() -> None:
    """Two arms, one pull: the gradient of the expected reward in the logits, enumerated over both arms."""
    torch.manual_seed(0)
    module = RL2(1, Discrete(2), hidden=3, value_weight=0.0, entropy_weight=0.0).double()
    module.world = Bandits(2, 1)
    chances = torch.tensor([0.2, 0.9]).double()
    told = Told(torch.ones(1, 1), torch.zeros(1, 2), torch.zeros(1), torch.ones(1))
    told = Told(*(part.double() for part in told))
    logits = module.outputs(module.read(torch.zeros(1, 3).double(), told))[0, :-1]
    (expected,) = torch.autograd.grad(-(logits.softmax(-1) @ chances), module.outputs.weight)
    # Every pair of the two dice, so that the mean over trajectories is the integral.
    steps = 60
    grid = (torch.arange(steps).double() + 0.5) / steps
    dice = type(arms().dataset("train").__getitems__([0]).query)(
        grid.repeat_interleave(steps)[None, :, None], grid.repeat(steps)[None, :, None]
    )
    played = module.collect(module.start(dice), chances, dice)
    module.query_loss(module.start(dice), played).loss.backward()
    torch.testing.assert_close(module.outputs.weight.grad, expected, rtol=0.05, atol=2e-3)


def test_the_bonus_of_entropy_fades_and_the_discount_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linearly: the loss is that with so large a bonus, and with so large a discount."""
    tasks = processes().dataset("train").__getitems__([0, 1])

    def loss(step: int, **settings: float) -> float:
        torch.manual_seed(0)
        module = RL2(4, Discrete(3), hidden=6, **settings)
        module.world = processes().world
        monkeypatch.setattr(RL2, "global_step", step)
        return module.measure(tasks)[0]["loss"].mean().item()

    whole, none = loss(0, entropy_weight=0.5), loss(0, entropy_weight=0.0)
    assert abs(whole - none) > 0.1
    for step, left in ((0, 1.0), (5, 0.75), (15, 0.25), (20, 0.0), (30, 0.0)):
        expected = none + left * (whole - none)
        assert loss(step, entropy_weight=0.5, entropy_until=20) == pytest.approx(expected, rel=1e-5)
        assert loss(step, discount=0.8, discount_until=20) == loss(0, discount=0.8 * (1 - left))
    assert loss(30, entropy_weight=0.5) == whole, "by itself it stays"
    assert loss(0, discount=0.8) != loss(0, discount=0.2)
    module = RL2(4, Discrete(3), hidden=6, discount=0.8, discount_until=20, entropy_until=20)
    module.world = processes().world
    written = module.measure(tasks)[0]["loss"]
    module._schedule = {name: torch.tensor(value) for name, value in module.schedule().items()}  # as in a recorded step
    torch.testing.assert_close(module.measure(tasks)[0]["loss"], written)
    with pytest.raises(ConfigError, match="entropy_until=-1 must be at least 0"):
        RL2(4, Discrete(3), entropy_until=-1)


@pytest.mark.slow
def test_it_learns_to_explore_and_stays_below_the_bound() -> None:
    torch.manual_seed(0)
    data = Rollouts(
        Bandits(5, 10), rounds=0, trajectories=1, meta_batch_size=200, test_episodes=4000, eval_meta_batch_size=1000
    )
    module = RL2(1, Discrete(5), optimizer=lambda p: torch.optim.Adam(p, lr=0.005))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=600, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert 5.9 < tested["test/return"] < bayes_optimal_return(5, 10) + tested["test/return_ci95"]
