"""Policy gradients of recorded trajectories: returns, baselines, advantages, and surrogates to be differentiated.

A surrogate is a function of the log-probabilities of recorded actions whose derivatives estimate those of the expected
return. Differentiated once, all of them are REINFORCE (Williams 1992). Second derivatives, which the outer gradient of
MAML needs, differ:

    plain: the usual loss; its second derivatives are wrong, because sampling depends on the policy too.
    dice: right in expectation (Foerster et al.: "DiCE: The Infinitely Differentiable Monte-Carlo Estimator" (2018),
        arXiv:1802.05098), in the form that takes advantages (Farquhar et al.: "Loaded DiCE: Trading off Bias and
        Variance in Any-Order Score Function Estimators for Reinforcement Learning" (2019), arXiv:1909.10549).
    lvc: what is left of it with little variance: each step's own term (Rothfuss et al.: "ProMP: Proximal Meta-Policy
        Search" (2019), arXiv:1810.06784, section 4).

Shapes: `H` steps, `B` trajectories, `O` numbers that are seen.
"""

from typing import Literal

import torch
from torch import Tensor

from lightning_meta.errors import ConfigError

Surrogate = Literal["lvc", "dice", "plain"]
LARGEST_SEEN = 10.0  # what a baseline reads is clipped there, so that its squares stay small
RIDGE = 1e-5


def check_discounts(discount: float, gae_lambda: float) -> None:
    """Raise `ConfigError` unless both lie between 0 and 1."""
    if not (0 <= discount <= 1 and 0 <= gae_lambda <= 1):
        raise ConfigError(f"discount={discount} and gae_lambda={gae_lambda} must lie between 0 and 1.")


def returns_to_go(rewards_HB: Tensor, discount: float | Tensor = 1.0) -> Tensor:
    """The sum of the rewards from each step on, `(H, B)`; one d steps later counts `discount ** d`."""
    step_H = torch.arange(len(rewards_HB), device=rewards_HB.device)
    later_HH = step_H - step_H[:, None]
    weights_HH = torch.where(later_HH >= 0, discount ** later_HH.clamp_min(0).to(rewards_HB.dtype), 0.0)
    return weights_HH @ rewards_HB


def advantages(
    rewards_HB: Tensor, values_HB: Tensor, discount: float | Tensor = 1.0, gae_lambda: float = 1.0
) -> Tensor:
    """Generalised advantage estimates `(H, B)` (Schulman et al. 2016, arXiv:1506.02438, equation 16).

    With `gae_lambda=1` they are the returns to go without the values. After the last step nothing is to be had.
    """
    next_HB = torch.cat([values_HB[1:], torch.zeros_like(values_HB[:1])])
    return returns_to_go(rewards_HB + discount * next_HB - values_HB, discount * gae_lambda)


def linear_baseline(seen_HBO: Tensor, returns_HB: Tensor, alive_HB: Tensor) -> Tensor:
    """Returns to go `(H, B)` as a linear function of what is seen, of its squares and of powers of the time.

    It is fitted by least squares to the trajectories themselves, of which steps that are not alive do not count.
    """
    seen = seen_HBO.clamp(-LARGEST_SEEN, LARGEST_SEEN).double()
    time = (torch.arange(len(seen), device=seen.device).double() / 100)[:, None, None].expand(*seen.shape[:2], 1)
    features_HBF = torch.cat([seen, seen.square(), time, time**2, time**3, torch.ones_like(time)], dim=-1)
    features_XF, counts_X = features_HBF.flatten(0, 1), alive_HB.flatten().double()
    weighted_XF = features_XF * counts_X[:, None]
    ridge_FF = RIDGE * torch.eye(features_XF.shape[-1], dtype=torch.float64, device=seen.device)
    right_F1 = weighted_XF.T @ returns_HB.flatten()[:, None].double()
    slopes_F1 = torch.linalg.solve(weighted_XF.T @ features_XF + ridge_FF, right_F1)
    return (features_HBF @ slopes_F1).squeeze(-1).to(returns_HB.dtype)


def standardised(values_HB: Tensor, alive_HB: Tensor) -> Tensor:
    """With mean 0 and standard deviation 1 over the steps that are alive; 0 at the others."""
    count = alive_HB.sum().clamp_min(1)
    centred_HB = (values_HB - (values_HB * alive_HB).sum() / count) * alive_HB
    return centred_HB / ((centred_HB.square().sum() / count).sqrt() + 1e-8)


def magic(x: Tensor) -> Tensor:
    """1, with the derivatives of `exp` (DiCE's MagicBox)."""
    return (x - x.detach()).exp()


def surrogate(kind: Surrogate, log_probs_HB: Tensor, advantages_HB: Tensor) -> Tensor:
    """Of each trajectory `(B,)`; its derivatives estimate those of the expected return.

    Args:
        kind: `lvc`, `dice` or `plain`, see above.
        log_probs_HB: of the actions that were taken; 0 at steps that are not alive.
        advantages_HB: constants; likewise.
    """
    if kind == "plain":
        return (log_probs_HB * advantages_HB).sum(0)
    if kind == "lvc":
        return (magic(log_probs_HB) * advantages_HB).sum(0)
    until_HB = log_probs_HB.cumsum(0)
    return ((magic(until_HB) - magic(until_HB - log_probs_HB)) * advantages_HB).sum(0)


def actor_critic_loss(
    log_probs_HB: Tensor,
    entropies_HB: Tensor,
    values_HB: Tensor,
    rewards_HB: Tensor,
    alive_HB: Tensor,
    discount: float | Tensor,
    gae_lambda: float,
    value_weight: float,
    entropy_weight: float | Tensor,
) -> Tensor:
    """Of the advantage actor-critic (Mnih et al.: "Asynchronous Methods for Deep Reinforcement Learning" (2016),
    arXiv:1602.01783), per step that is alive: minus the plain surrogate and the entropy, and the squared errors of the
    values, which are taught by the advantages that they lead to.
    """
    values_HB = values_HB * alive_HB
    estimates_HB = advantages(rewards_HB, values_HB.detach(), discount, gae_lambda) * alive_HB
    errors_HB = values_HB - (estimates_HB + values_HB).detach()
    losses_HB = -log_probs_HB * estimates_HB + value_weight * errors_HB.square() - entropy_weight * entropies_HB
    return (losses_HB * alive_HB).sum() / alive_HB.sum()
