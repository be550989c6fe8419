"""Planners believe what Bayes' rule says, and their plans are those of value iteration."""

import pytest
import torch
from scipy import stats

from lightning_meta.algorithms import PSRL, Greedy, Oracle
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.modules.player import Seen
from lightning_meta.worlds import Discrete, TabularMDP
from tests.algorithms.rollout_cases import arms, processes

ROLLOUTS = {
    "planners-greedy": (lambda **kw: Greedy(4, 3, epsilon=0.3, **kw), processes),
    "planners-psrl": (lambda **kw: PSRL(4, 3, **kw), processes),
}
# In state 0, action 1: twice to state 2, once to 0, once not seen; in state 1, action 0: once to 1. Of 3 states.
SEEN = Seen(torch.tensor([1, 1, 1, 1, 2]), torch.tensor([2, 2, 0, 3, 1]), torch.tensor([0.0, 2.0, 1.0, 4.0, -1.0]))


def test_what_is_believed_on_average_is_the_mean_of_the_posterior() -> None:
    process = Greedy(3, 2).believed(SEEN, torch.tensor(0.5))
    torch.testing.assert_close(process.moves[0, 1], torch.tensor([2.0, 1.0, 3.0]) / 6)
    torch.testing.assert_close(process.moves[1, 0], torch.tensor([1.0, 2.0, 1.0]) / 4)
    torch.testing.assert_close(process.moves[2, 1], torch.ones(3) / 3)
    torch.testing.assert_close(process.rewards, torch.tensor([[1.0, 8 / 5], [0.0, 1.0], [1.0, 1.0]]))


def test_what_is_drawn_is_drawn_from_the_posterior() -> None:
    """A coordinate of a Dirichlet number is a Beta one."""
    dice = (torch.arange(5000) + 0.5) / 5000
    drawn = torch.vmap(PSRL(3, 2).believed, in_dims=(None, 0))(SEEN, dice)
    torch.testing.assert_close(drawn.moves.sum(-1), torch.ones(5000, 3, 2))
    for (state, action, to), (a, b) in {
        (0, 1, 2): (3, 3),
        (0, 1, 1): (1, 5),
        (1, 0, 1): (2, 2),
        (2, 0, 0): (1, 2),
    }.items():
        assert stats.kstest(drawn.moves[:, state, action, to].numpy(), stats.beta(a, b).cdf).pvalue > 0.001
    for (state, action), (mean, count) in {(0, 1): (8 / 5, 4), (1, 0): (0.0, 1), (2, 1): (1.0, 0)}.items():
        expected = stats.norm(mean, (1 + count) ** -0.5)
        assert stats.kstest(drawn.rewards[:, state, action].numpy(), expected.cdf).pvalue > 0.001


def test_a_trial_is_remembered_step_by_step() -> None:
    module, data = Greedy(4, 3), processes()
    module.world = data.world
    task, support, query = (
        torch.utils._pytree.tree_map(lambda leaf: leaf[0], part) for part in data.dataset("train").__getitems__([2])
    )
    rounds = module.play_rounds(task, support, query)[1]
    seen = rounds[-1].actor
    assert seen.pairs.shape == (10, 3), "two rounds of 5 steps"
    for number, played in enumerate(rounds[:2]):
        for step in range(5):
            for walk in range(3):
                at = 5 * number + step
                states = played.told.seen[:, walk].argmax(-1).tolist()
                assert seen.pairs[at, walk] == 3 * states[step] + played.actions[step, walk]
                assert seen.states[at, walk] == (states[step + 1] if step < 4 else 4)
                assert seen.rewards[at, walk] == played.rewards[step, walk]


@pytest.mark.slow
@torch.no_grad()
def test_who_plans_learns_over_episodes_and_stays_below_who_knows() -> None:
    returns = {}
    for module in (PSRL(10, 5), Greedy(10, 5), Oracle(10, Discrete(5))):
        data = Rollouts(TabularMDP(), rounds=9, trajectories=1)
        module.world = data.world
        returns[type(module).__name__] = module.measure(data.dataset("val").__getitems__(range(100)))[0]
    psrl, greedy, oracle = (logs["total_return"].mean() for logs in returns.values())
    assert 125 < psrl < 150 and 125 < greedy < 150, "138.1 and 134.8 in the literature, of 100 for chance"
    assert oracle > 200
    assert returns["PSRL"]["return_9"].mean() > returns["PSRL"]["return_0"].mean() + 3


def test_what_they_cannot_play_is_told() -> None:
    with pytest.raises(ConfigError, match="sees seen_size=4 numbers"):
        PSRL(4, 3).check_world(arms().world)
    with pytest.raises(ConfigError, match="epsilon=2 must lie between 0 and 1"):
        Greedy(4, 3, 2)
