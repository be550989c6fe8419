"""E-MAML: over all supports and queries that there can be, its gradient is that of the exact expected return."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lightning_meta.algorithms import EMAML
from lightning_meta.core.policy_gradient import Surrogate, returns_to_go
from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.modules.rollout import Told, Trajectories
from lightning_meta.worlds import Continuous, Discrete
from tests.algorithms.rollout_cases import navigation, processes
from tests.core.test_policy_gradient import ACTIONS_HB, MOVES_SAS, NEXT_HB, REWARDS_HB, REWARDS_SA, STATES_HB, A, H, S

ROLLOUTS = {
    "e-maml": (lambda **kw: EMAML(2, Continuous(2), hidden=[8], activation="tanh", **kw), navigation),
    "e-maml-processes": (lambda **kw: EMAML(4, Discrete(3), hidden=[8], exploration_weight=0.1, **kw), processes),
}
RATE = 2.0
CHANCES_B = MOVES_SAS[STATES_HB, ACTIONS_HB, NEXT_HB].prod(0)  # of the world's part


class Undiscounted(EMAML):
    """With returns to go in place of standardised advantages, which no closed form has."""

    def advantages(self, played: Trajectories) -> Tensor:
        return returns_to_go(played.rewards)


def explorer(**settings: object) -> Undiscounted:
    torch.manual_seed(1)
    return Undiscounted(S, Discrete(A), hidden=[3], activation="tanh", inner_lr=RATE, **settings).double()


def logits(module: EMAML, phi: dict[str, Tensor]) -> Tensor:
    return functional_call(module.policy, phi, (torch.eye(S).double()[None],))[0]


def chance(module: EMAML, phi: dict[str, Tensor]) -> Tensor:
    """Of each of the 64 trajectories."""
    return logits(module, phi).softmax(-1)[STATES_HB, ACTIONS_HB].prod(0) * CHANCES_B


def exact_gradient(module: EMAML) -> Tensor:
    """Of minus the return per step: the sum over supports of their chance times the exact return after the step."""
    theta, total = module.theta(), torch.zeros(()).double()
    for path, chance_of_path in enumerate(chance(module, theta)):
        log_probs_H = logits(module, theta).log_softmax(-1)[STATES_HB[:, path], ACTIONS_HB[:, path]]
        to_go_H = REWARDS_HB[:, path].flip(0).cumsum(0).flip(0)
        ascent = torch.autograd.grad((log_probs_H * to_go_H).sum() / H, list(theta.values()), create_graph=True)
        phi = {name: value + RATE * step for (name, value), step in zip(theta.items(), ascent, strict=True)}
        value_S = torch.zeros(S).double()
        for _ in range(H):
            value_S = (logits(module, phi).softmax(-1) * (REWARDS_SA + MOVES_SAS @ value_S)).sum(-1)
        total = total - chance_of_path * value_S[0] / H
    return flat(torch.autograd.grad(total, list(theta.values())))


def enumerated_gradient(module: EMAML) -> Tensor:
    """The estimator over every pair of a support and a query, each as often as they occur."""
    theta = module.theta()
    seen_BHO = F.one_hot(STATES_HB.T, S).double()
    actions_BH, rewards_BH, dice = ACTIONS_HB.T, REWARDS_HB.T, Dice(CHANCES_B, CHANCES_B)  # which nobody throws

    def played(actor: object, seen: Tensor, actions: Tensor, rewards: Tensor) -> Trajectories:
        nothing = torch.zeros_like(rewards)[:, None]
        told = Told(seen[:, None], nothing, nothing, nothing)
        return Trajectories(actor, told, actions[:, None], rewards[:, None], torch.ones_like(rewards)[:, None])

    def after(*support: Tensor) -> Tensor:
        adapted = module.adapt(played(module.start(dice), *support))

        def judged(*query: Tensor) -> Tensor:
            return module.query_loss(adapted, played(adapted, *query)).loss

        losses_B = vmap(judged)(seen_BHO, actions_BH, rewards_BH)
        return (losses_B * chance(module, adapted.phi).detach()).sum()

    losses_B = vmap(after)(seen_BHO, actions_BH, rewards_BH)
    total = (losses_B * chance(module, theta).detach()).sum()
    return flat(torch.autograd.grad(total, list(theta.values()), retain_graph=True))


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("expected", [0.0, 0.7])
def test_the_gradient_is_that_of_the_exact_return_after_adaptation(expected: float) -> None:
    """Whatever the return is compared with."""
    module = explorer()
    module.expected.data.fill_(expected)
    torch.testing.assert_close(enumerated_gradient(module), exact_gradient(module), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("surrogate", "weight"), [("plain", 0.0), ("lvc", 0.0), ("dice", 1.0), ("lvc", 1.0)], ids=str)
def test_without_the_term_or_with_sampling_counted_twice_it_is_not(surrogate: Surrogate, weight: float) -> None:
    module = explorer(surrogate=surrogate, exploration_weight=weight)
    truth = exact_gradient(module)
    assert (enumerated_gradient(module) - truth).norm() > 0.02 * truth.norm()
