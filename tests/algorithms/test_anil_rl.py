"""ANIL for reinforcement learning: the last layer moves, by plain autograd's step, and the body learns through it."""

import torch

from lightning_meta.algorithms import ANILRL, MAMLRL
from lightning_meta.modules.rollout import Trajectories
from lightning_meta.worlds import Continuous, Discrete
from tests.algorithms.rollout_cases import navigation, processes
from tests.algorithms.test_maml_rl import SMALL, first_trial

ROLLOUTS = {
    "anil-rl": (lambda **kw: ANILRL(2, Continuous(2), **SMALL, **kw), navigation),
    "anil-rl-processes": (lambda **kw: ANILRL(4, Discrete(3), **SMALL, **kw), processes),
}


def test_the_last_layer_steps_as_in_maml_and_nothing_else_does() -> None:
    moved = []
    for kind in (ANILRL, MAMLRL):
        torch.manual_seed(0)
        module, data = kind(2, Continuous(2), **SMALL, inner_lr=0.3).double(), navigation()
        module.world = data.world
        moved.append(module.adapt(module.play_rounds(*first_trial(data))[1][0]))
    anil, maml = moved
    assert anil.keys() == {"network.1.weight", "network.1.bias"}
    torch.testing.assert_close(anil, {name: maml[name] for name in anil})
    assert (anil["network.1.weight"] - module.policy.network[1].weight).abs().max() > 1e-3


def test_what_does_not_move_learns_through_the_step_of_the_last_layer() -> None:
    """By plain autograd on recorded trajectories, the body and the deviations as they are in both rounds."""
    torch.manual_seed(0)
    module, data = ANILRL(2, Continuous(2), **SMALL, inner_lr=0.3, surrogate="plain").double(), navigation(rounds=1)
    module.world = data.world
    out, rounds = module.play_rounds(*first_trial(data))
    out.loss.backward()
    found = {name: parameter.grad for name, parameter in module.policy.named_parameters()}

    body, last = module.policy.network

    def loss(weight: torch.Tensor, bias: torch.Tensor, played: Trajectories) -> torch.Tensor:
        features = body(played.told.seen.flatten(0, 1))
        mean = (features @ weight.T + bias).view(played.actions.shape)
        density = torch.distributions.Normal(mean, module.policy.log_std.exp()).log_prob(played.actions).sum(-1)
        return -(density * module.advantages(played)).sum() / played.alive.sum()

    steps = torch.autograd.grad(loss(last.weight, last.bias, rounds[0]), (last.weight, last.bias), create_graph=True)
    phi = [value - 0.3 * step for value, step in zip((last.weight, last.bias), steps, strict=True)]
    parameters = dict(module.policy.named_parameters())
    truth = torch.autograd.grad(loss(*phi, rounds[1]), list(parameters.values()))
    torch.testing.assert_close(found, dict(zip(parameters, truth, strict=True)), rtol=1e-8, atol=1e-12)
    assert found["network.0.layers.0.weight"].abs().max() > 1e-4
