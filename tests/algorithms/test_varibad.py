"""VariBAD: its bound is one, its beliefs are read once, no reward is evidence twice, and they become the posterior."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_meta.algorithms import VariBAD
from lightning_meta.compat import tree_map
from lightning_meta.core.dice import normal
from lightning_meta.core.gaussian import Gaussian
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.modules.rollout import Told
from lightning_meta.worlds import Bandits, Continuous, Discrete, Grid
from tests.algorithms.rollout_cases import arms, navigation, processes, rollouts

SMALL = dict(hidden=6, width=5, latent=2)
ROLLOUTS = {
    "varibad": (lambda **kw: VariBAD(9, Grid.actions, pays_above=0.0, **SMALL, **kw), lambda: rollouts(Grid(3, 4))),
    "varibad-arms": (lambda **kw: VariBAD(1, Discrete(3), pays_above=0.5, **SMALL, **kw), arms),
    "varibad-processes": (lambda **kw: VariBAD(4, Discrete(3), **SMALL, **kw), processes),
    "varibad-navigation": (lambda **kw: VariBAD(2, Continuous(2), **SMALL, **kw), navigation),
}


def trial(module: VariBAD, data: Rollouts) -> tuple:
    """A trial that was played, in double precision: its last round, all that was told, and what was alive."""
    module.double().world = data.world
    task, support, query = (
        tree_map(lambda leaf: leaf[0].double() if leaf.is_floating_point() else leaf[0], part)
        for part in data.dataset("test").__getitems__([0])
    )
    rounds = module.play_rounds(task, support, query)[1]
    told = tree_map(lambda *parts: torch.cat(parts), *(round.told for round in rounds))
    return rounds[-1], told, torch.cat([round.alive for round in rounds])


@pytest.mark.parametrize("case", ["varibad", "varibad-processes"])
def test_the_bound_is_that_of_torch_s_distributions(case: str) -> None:
    """Every belief and every step of the trial in two loops."""
    torch.manual_seed(0)
    make, data = ROLLOUTS[case]
    module = make()
    _, told, alive = trial(module, data())
    beliefs, key = module.beliefs(told), torch.tensor(7)
    noise, total = normal(key, *beliefs.mean.shape, dtype=torch.float64), 0.0
    steps, trajectories = alive.shape
    for place in range(trajectories):
        before = torch.distributions.Normal(torch.zeros(2).double(), torch.ones(2).double())
        for now in range(steps):
            belief = torch.distributions.Normal(beliefs.mean[now, place], beliefs.std[now, place])
            latent = belief.mean + belief.stddev * noise[now, place]
            total -= torch.distributions.kl_divergence(belief, before).sum()
            before = belief
            for step in range(steps):
                if told.fresh[step, place]:
                    continue
                code = module.code_of_step(torch.cat([told.seen[step, place], told.action[step, place]]))
                pays, reward = module.code_of_latent(latent) @ code, told.reward[step, place]
                of_reward = (
                    torch.distributions.Normal(pays, module.log_std.exp()).log_prob(reward) if module.pays_above is None
                    else torch.distributions.Bernoulli(logits=pays).log_prob((reward > 0).double())
                )  # fmt: skip
                total += of_reward
    found = module.evidence(beliefs, told, alive, key)
    torch.testing.assert_close(found, total / (steps * trajectories), rtol=1e-9, atol=1e-12)


def test_the_memory_that_acts_is_that_of_the_whole_trial() -> None:
    """Over three rounds; and the policy's loss does not train the belief, nor the evidence the policy."""
    torch.manual_seed(0)
    module = ROLLOUTS["varibad"][0]()
    last, told, _ = trial(module, ROLLOUTS["varibad"][1]())
    scores = module.policy(module.known(told.seen, module.beliefs(told)))
    life = module.adapt(last)
    torch.testing.assert_close(life.told, told)
    torch.testing.assert_close(module.belief(life.memory).mean, module.beliefs(told).mean[-1])
    memory, first = None, tree_map(lambda leaf: leaf[-4:], told)
    for step in range(4):
        _, memory = module.act(last.actor, memory, tree_map(lambda leaf, s=step: leaf[s], first), torch.rand(3, 1))
        seen = module.policy(module.known(first.seen[step], module.belief(memory)))
        torch.testing.assert_close(seen, scores[step - 4])
    scores.sum().backward()
    assert all(parameter.grad is None for parameter in module.cell.parameters())
    module.evidence(module.beliefs(told), told, torch.ones_like(told.reward), life.key).backward()
    assert module.cell.recurrent.weight.grad.abs().sum() > 0


def test_a_reward_after_the_end_is_no_evidence() -> None:
    torch.manual_seed(0)
    module = ROLLOUTS["varibad"][0]()
    _, told, alive = trial(module, ROLLOUTS["varibad"][1]())
    alive[-1], beliefs, key = 0, module.beliefs(told), torch.tensor(3)
    changed = told._replace(reward=torch.cat([told.reward[:-1], 1 - told.reward[-1:]]))
    assert module.evidence(beliefs, told, alive, key) == module.evidence(beliefs, changed, alive, key)


@pytest.mark.slow
def test_the_belief_becomes_the_posterior() -> None:
    """Two dependent arms, by chance: what a pull pays is known after a few, and no surer than it may be.

    The chance that the first arm pays, given s pulls of n that spoke for it, is (s + 1) / (n + 2).
    """
    torch.manual_seed(0)
    data = Rollouts(Bandits(2, 8, dependent=True), rounds=0, trajectories=1, meta_batch_size=100)
    module = VariBAD(
        1, Discrete(2), latent=2, hidden=16, width=16, pays_above=0.5, entropy_weight=10.0,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=250, max_epochs=-1, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip

    @torch.no_grad()
    def error() -> float:
        (round,) = module.eval().record(data.dataset("test").__getitems__(range(400)))
        told = Told(*(part[:, :, 0].transpose(0, 1) for part in round.told))  # trials in the place of trajectories
        beliefs, arm = module.beliefs(told), nn.functional.one_hot(torch.tensor(0), 2).float()
        noise = torch.randn(100, *beliefs.mean.shape, generator=torch.Generator().manual_seed(0))
        latents = beliefs.mean + beliefs.std * noise
        chances = module.decoded(latents, torch.ones(1, 1), arm[None]).sigmoid().mean(0)[..., 0]
        spoke = told.action[..., 0] * told.reward + told.action[..., 1] * (1 - told.reward)
        exact = (spoke.cumsum(0) + 1) / (torch.arange(8.0)[:, None] + 2)
        return (chances - exact).abs().mean().item()

    module.world = data.world
    before = error()
    trainer.fit(module, datamodule=data)
    assert error() < 0.06 < before / 2


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="latent=0 must be at least 1"):
        VariBAD(1, Discrete(2), latent=0)
    with pytest.raises(ConfigError, match=r"discount=1\.5 and gae_lambda=0\.95 must lie between"):
        VariBAD(1, Discrete(2), discount=1.5)
    assert isinstance(VariBAD(1, Discrete(2)).belief(torch.zeros(1, 64)), Gaussian)
