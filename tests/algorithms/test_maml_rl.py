"""MAML for reinforcement learning: its step is that of plain autograd, its rounds are played anew, and it learns."""

from typing import Any

import torch

from lightning_meta.algorithms import MAMLRL
from lightning_meta.compat import tree_map
from lightning_meta.core.policy_gradient import linear_baseline, returns_to_go
from lightning_meta.modules import LearnedRates
from lightning_meta.worlds import Continuous, Discrete, Navigation
from tests.algorithms.rollout_cases import arms, navigation, processes, rollouts

SMALL: dict[str, Any] = dict(hidden=[8], activation="tanh")
ROLLOUTS = {
    "maml-rl": (lambda **kw: MAMLRL(2, Continuous(2), **SMALL, **kw), navigation),
    "maml-rl-dice": (lambda **kw: MAMLRL(4, Discrete(3), surrogate="dice", **SMALL, **kw), processes),
    "maml-rl-first-order": (lambda **kw: MAMLRL(2, Continuous(2), first_order=True, **SMALL, **kw), navigation),
    "maml-rl-meta-sgd": (
        lambda **kw: MAMLRL(2, Continuous(2), inner_optimizer=LearnedRates, **SMALL, **kw), navigation,
    ),
    "maml-rl-arms": (lambda **kw: MAMLRL(1, Discrete(3), gae_lambda=0.9, **SMALL, **kw), arms),
}  # fmt: skip


def first_trial(data: Any) -> Any:
    trial = data.dataset("train").__getitems__([3])
    return tree_map(lambda leaf: leaf[0].double() if leaf.is_floating_point() else leaf[0], trial)


def test_a_step_is_that_of_plain_autograd() -> None:
    """Written out for a normal policy: the gradient of log-probabilities times standardised advantages."""
    torch.manual_seed(0)
    module, data = MAMLRL(2, Continuous(2), **SMALL, inner_lr=0.3).double(), navigation()
    module.world = data.world
    trial = first_trial(data)
    played = module.play_rounds(*trial)[1][0]
    phi = module.adapt(played)
    returns = returns_to_go(played.rewards, 0.99)
    estimates = returns - linear_baseline(played.told.seen, returns, played.alive)
    estimates = (estimates - estimates.mean()) / estimates.std(correction=0)
    mean = module.policy.network[1](module.policy.network[0](played.told.seen.flatten(0, 1))).view(6, 3, 2)
    density = torch.distributions.Normal(mean, module.policy.log_std.exp()).log_prob(played.actions).sum(-1)
    loss = -(density * estimates).sum() / 18
    gradients = torch.autograd.grad(loss, list(module.policy.parameters()))
    for (name, value), gradient in zip(module.policy.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(phi[name], value - 0.3 * gradient, rtol=1e-6, atol=1e-8)


def test_every_round_is_played_by_the_policy_that_the_one_before_led_to() -> None:
    torch.manual_seed(0)
    module, data = MAMLRL(2, Continuous(2), **SMALL, inner_lr=0.3).double(), navigation()
    module.world = data.world
    task, support, query = first_trial(data)
    rounds = module.play_rounds(task, support, query)[1]
    phi = module.theta()
    for played, world, actor in zip(rounds, [*support.world, query.world], [*support.actor, query.actor], strict=True):
        alone = module.collect(phi, task, type(query)(world, actor))
        torch.testing.assert_close(alone.actions, played.actions)
        phi = module.adapt(alone)
    assert not torch.allclose(rounds[0].actions, rounds[1].actions)


def test_second_derivatives_are_what_first_order_drops() -> None:
    gradients = []
    for first_order in (False, True):
        torch.manual_seed(0)
        module, data = MAMLRL(2, Continuous(2), **SMALL, inner_lr=0.5, first_order=first_order).double(), navigation()
        module.world = data.world
        trial = first_trial(data)
        module.play_task(*trial).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


def test_adapting_for_many_rounds_leads_to_the_goal() -> None:
    """Plain policy gradient, round by round from an untrained policy, over five goals."""
    torch.manual_seed(0)
    module = MAMLRL(2, Continuous(2), hidden=[16], activation="tanh", inner_lr=1.0)
    data = rollouts(Navigation(20), rounds=60, trajectories=20)
    module.world = data.world
    with torch.no_grad():
        logs = module.measure(data.dataset("train").__getitems__(range(5)))[0]
    assert logs["return_60"].mean() > 0.5 * logs["return_0"].mean(), "both are negative"


def test_a_policy_of_one_step_adapts_alike_by_any_surrogate() -> None:
    """Their first derivatives are the same."""
    moved = []
    for surrogate in ("lvc", "dice", "plain"):
        torch.manual_seed(0)
        module, data = MAMLRL(2, Continuous(2), surrogate=surrogate, **SMALL).double(), navigation()
        module.world = data.world
        moved.append(module.adapt(module.play_rounds(*first_trial(data))[1][0]))
    torch.testing.assert_close(moved[0], moved[1])
    torch.testing.assert_close(moved[0], moved[2])
