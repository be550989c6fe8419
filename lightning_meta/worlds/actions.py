"""Kinds of actions: how one is drawn from the outputs of a network by dice, and how likely it was."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_meta.errors import require_at_least


def one_hot(places: Tensor, size: int) -> Tensor:
    """As `F.one_hot`, but without a look at the values, which a derivative within `torch.vmap` does not allow."""
    return (places[..., None] == torch.arange(size, device=places.device)).long()


class Actions:
    """Base of kinds of actions. Of a policy's `scores` `(..., S)` one makes a distribution."""

    n: int

    @property
    def size(self) -> int:
        """Numbers that `encode` an action for a network."""
        return self.n

    @property
    def scores(self) -> int:
        """S."""
        return self.n

    @property
    def dice(self) -> int:
        """Uniform numbers that decide an action."""
        return self.n

    def draw(self, scores: Tensor, dice: Tensor) -> Tensor:
        """The actions that the dice `(..., D)` decide on."""
        raise NotImplementedError

    def log_prob(self, scores: Tensor, actions: Tensor) -> Tensor:
        """Logarithm of the probability, or density, of actions `(...)`."""
        raise NotImplementedError

    def entropy(self, scores: Tensor) -> Tensor:
        """Of the distributions, in nats."""
        raise NotImplementedError

    def divergence(self, scores: Tensor, others: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the distributions of `others` from those of `scores`, in nats."""
        raise NotImplementedError

    def encode(self, actions: Tensor) -> Tensor:
        """As `(..., size)` numbers, none of which is needed for no action: all are 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class Discrete(Actions):
    """One of `n` actions; the scores are logits."""

    n: int

    def __post_init__(self) -> None:
        require_at_least(2, **{"Discrete.n": self.n})

    @property
    def dice(self) -> int:
        return 1

    def draw(self, scores: Tensor, dice: Tensor) -> Tensor:
        # The last sum may be a little below 1, and a number above it; then it is the last action.
        return (scores.softmax(-1).cumsum(-1) < dice).sum(-1).clamp_max(self.n - 1)

    def log_prob(self, scores: Tensor, actions: Tensor) -> Tensor:
        return scores.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)

    def entropy(self, scores: Tensor) -> Tensor:
        log_probs = scores.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def divergence(self, scores: Tensor, others: Tensor) -> Tensor:
        log_probs = scores.log_softmax(-1)
        return (log_probs.exp() * (log_probs - others.log_softmax(-1))).sum(-1)

    def encode(self, actions: Tensor) -> Tensor:
        return one_hot(actions, self.n)


@dataclass(frozen=True)
class Continuous(Actions):
    """`n` real numbers; the scores are the means and the logarithms of the standard deviations of normal ones."""

    n: int

    def __post_init__(self) -> None:
        require_at_least(1, **{"Continuous.n": self.n})

    @property
    def scores(self) -> int:
        return 2 * self.n

    def draw(self, scores: Tensor, dice: Tensor) -> Tensor:
        mean, log_std = scores.chunk(2, dim=-1)
        return mean + log_std.exp() * torch.special.ndtri(dice)

    def log_prob(self, scores: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = scores.chunk(2, dim=-1)
        return (-0.5 * ((actions - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, scores: Tensor) -> Tensor:
        return (scores.chunk(2, dim=-1)[1] + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)

    def divergence(self, scores: Tensor, others: Tensor) -> Tensor:
        (mean, log_std), (other, log_other) = scores.chunk(2, dim=-1), others.chunk(2, dim=-1)
        squares = (2 * log_std).exp() + (mean - other).square()
        return (log_other - log_std + 0.5 * squares * (-2 * log_other).exp() - 0.5).sum(-1)

    def encode(self, actions: Tensor) -> Tensor:
        return actions
