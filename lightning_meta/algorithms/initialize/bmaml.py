"""BMAML: several copies of the weights, particles, that keep apart and stand for what a task leaves open.

Yoon, Kim, Dia, Kim, Bengio, Ahn: "Bayesian Model-Agnostic Meta-Learning" (2018), arXiv:1806.03836.

The inner loop is Stein variational gradient descent on all particles; a prediction is the mean of their probabilities.
With `chaser_steps` the meta-gradient is that of the distance to where the particles would go if they knew the queries
too (the chaser loss, equation 9), without it that of the likelihood of the queries.

Deviations: those of MAML. All weights are particles; the paper shares all but the last layer among them where the
network is large. Its posterior has a prior on the weights; here particles start from the meta-learned ones, and the
posterior is that of the support set alone.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Batch, Params, TaskOutput, trainable, unroll
from lightning_meta.core.initial_weights import initial_weights
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.core.statistics import log_mean_probabilities
from lightning_meta.core.svgd import SVGD
from lightning_meta.errors import ConfigError, require_at_least


class Particles(NamedTuple):
    """Fast weights `(M, ...)` by name (with statistics where the protocol has them), and what they learned from."""

    params: Params
    support: Batch


class BMAML(MAML):
    """MAML on M particles. Predictions are log-probabilities.

    Args:
        backbone, n_way, inner_lr: of `MAML`.
        particles: how many.
        temperature: of the posterior; the higher, the further particles keep apart.
        chaser_steps: more steps, on support and query set, that lead to what the particles chase. 0: they learn from
            the likelihood.
        **kwargs: of `MAML`, but `inner_optimizer`, `head_init` and `loss_fn`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.4,
        particles: int = 5,
        temperature: float = 0.01,
        chaser_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        # A copy: the layers of the caller's backbone stay as they are, to be trained or not.
        super().__init__(deepcopy(backbone), n_way, inner_lr, **kwargs)
        require_at_least(1, particles=particles)
        require_at_least(0, chaser_steps=chaser_steps)
        if kwargs.get("inner_optimizer") or kwargs.get("head_init") or self.loss_fn is not F.cross_entropy:
            raise ConfigError(
                "BMAML classifies, draws each particle by itself, and moves them by SVGD; leave loss_fn, head_init and "
                "inner_optimizer out."
            )
        self.chaser_steps = chaser_steps
        names = trainable(self.learner)
        keys = torch.randint(2**62, (particles,)).numpy().astype("uint64")
        drawn = initial_weights(self.learner, keys)
        self.particles = nn.ParameterDict({module_key(name): nn.Parameter(drawn[name].clone()) for name in names})
        self.learner.requires_grad_(False)  # its layers alone are of use
        self.names = list(names)
        self.inner_optimizer = SVGD(inner_lr, temperature)

    def theta(self) -> Params:
        """The particles `(M, ...)` that the inner loop starts from, by name."""
        return {name: self.particles[module_key(name)] for name in self.names}

    def each(self, fn: Callable[[Params], Any], params: Params) -> Any:
        """A function of one particle's weights for all of them, stacked."""
        return vmap(fn, randomness="different")(params)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self.each(lambda one: super(BMAML, self).loss(one, batch), params).sum()

    def adapt(self, support: Batch) -> Any:
        phi = unroll(lambda p: self.loss(p, support), self.theta(), self.inner_optimizer, self.steps, self.first_order)
        return Particles(phi | self.statistics(phi, support.x), support)

    def statistics(self, phi: Params, x: Tensor) -> Params:
        return self.each(lambda one: support_statistics(self.learner, one, x) | one, phi)

    def logits_of_each(self, particles: Particles, x: Tensor) -> Tensor:
        """What each particle says, `(M, Q, N)`."""
        return self.each(lambda one: functional_call(self.learner, one, (x,)), particles.params)

    def query_loss(self, adapted: Any, query: Batch) -> TaskOutput:
        particles: Particles = adapted
        preds = log_mean_probabilities(self.logits_of_each(particles, query.x))
        loss = F.nll_loss(preds, query.y)
        if self.training and self.chaser_steps:
            return TaskOutput(self.chased(particles, query), preds, {"query_loss": loss.detach()})
        return TaskOutput(loss, preds)

    def chased(self, particles: Particles, query: Batch) -> Tensor:
        """Squared distance of the particles from the leaders, which go on from them."""
        phi = {name: particles.params[name] for name in self.names}
        known = Batch(*(torch.cat(pair) for pair in zip(particles.support, query, strict=True)))
        start = {name: value.detach() for name, value in phi.items()}
        leader = unroll(lambda p: self.loss(p, known), start, self.inner_optimizer, self.chaser_steps, first_order=True)
        return torch.stack([(phi[name] - leader[name].detach()).square().sum() for name in phi]).sum()
