"""The exact belief against Bayes' rule goal by goal; the learned one against a decoder that is told what to say."""

from pathlib import Path

import torch

from lightning_meta.algorithms import VariBAD
from lightning_meta.reports import BeliefMap
from lightning_meta.reports.belief_map import believed, posterior
from lightning_meta.worlds import Grid
from tests.algorithms.rollout_cases import rollouts
from tests.reports.conftest import run_test


def varibad() -> VariBAD:
    torch.manual_seed(0)
    return VariBAD(9, Grid.actions, hidden=6, width=5, latent=2, pays_above=0.0)


def test_what_can_be_known_is_what_rewards_do_not_rule_out() -> None:
    """A goal is possible before a step if it would have paid what was paid until then; three rounds of four steps."""
    module, data = varibad(), rollouts(Grid(3, 4), test_episodes=60)
    module.world, world, found = data.world, data.world, 0
    trials = data.dataset("test").__getitems__(range(60))
    rounds = module.eval().record(trials)
    for place, goal in enumerate(trials.task):
        seen = torch.cat([each.told.seen[place, :, 0] for each in rounds])
        actions = torch.cat([each.actions[place, :, 0] for each in rounds])
        rewards = torch.cat([each.rewards[place, :, 0] for each in rounds])
        would_pay = torch.stack([
            world.step(torch.tensor(other), seen.argmax(-1), actions, torch.zeros(12, 1))[1] for other in world.goals
        ])  # fmt: skip
        agrees = torch.cat([torch.ones(5, 1), (would_pay == rewards).float().cumprod(1)[:, :-1]], dim=1)
        exact = torch.zeros(12, 9)
        exact[:, world.goals] = (agrees / agrees.sum(0)).T
        torch.testing.assert_close(posterior(world, goal, seen, actions), exact)
        found += int(exact.max() == 1)
    assert found > 4


@torch.no_grad()
def test_what_is_believed_is_the_mean_over_the_latent_vector() -> None:
    """A decoder that says `2 z_0` of the cell 4 and one half of all others, against many draws."""
    module, data = varibad().eval(), rollouts(Grid(3, 4))
    module.world = data.world
    told = module.record(data.dataset("test").__getitems__([0]))[0].told
    told = type(told)(*(part[0, :, :1] for part in told))
    module.decoded = lambda latent, seen, action: torch.where(seen[:, 4] > 0, 2 * latent[..., :1], 0.0)
    belief = module.beliefs(told)
    draws = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    expected = (2 * (belief.mean[:, 0, 0] + belief.std[:, 0, 0] * draws)).sigmoid().mean(0)
    chances = believed(module, told, data.world)
    torch.testing.assert_close(chances.sum(-1), torch.ones(4))
    torch.testing.assert_close(chances[:, 4] / chances[:, 0] / 2, expected, rtol=0, atol=0.01)


def test_a_map_is_drawn_of_an_untrained_learner(tmp_path: Path) -> None:
    report = BeliefMap(steps=3)
    run_test(tmp_path, varibad(), rollouts(Grid(3, 4)), report)
    assert [path.name for path in report.paths] == ["belief_map.png"]
