"""PLATIPUS: MAML whose initialisation is drawn from a learned distribution, so that a task has several solutions.

Finn, Xu, Levine: "Probabilistic Model-Agnostic Meta-Learning" (2018), arXiv:1806.02817, algorithms 1 and 2.

Weights have a normal distribution, with a learned mean and learned standard deviations. In training they are drawn
where a gradient step on the query set has moved the mean, and a divergence keeps that near to where a step on the
support set moves it; there they are drawn in evaluation. Then the inner loop of MAML starts.

Deviations: those of MAML. The two rates of the means are one number each. The divergence is divided by the number of
queries, since the loss is a mean over them. Evaluation draws with the same noise for every task.
"""

from collections.abc import Callable
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Batch, Params, TaskOutput, unroll
from lightning_meta.core.dice import normal
from lightning_meta.core.gaussian import Gaussian, kl_divergence
from lightning_meta.core.inner_loop import take_step
from lightning_meta.core.inner_optimizer import SGD, module_key
from lightning_meta.core.statistics import log_mean_probabilities
from lightning_meta.errors import ConfigError, require_at_least


class Prior(NamedTuple):
    """What is known of a task without its queries: the mean that a step on the support set moves to, and that set."""

    mean: Params
    support: Batch


class PLATIPUS(MAML):
    """MAML from drawn initialisations. Predictions are the logarithms of mean probabilities.

    Args:
        backbone, n_way, inner_lr: of `MAML`.
        draws: of the initialisation in evaluation; in training there is one for each task.
        std: of the weights at first, of both distributions.
        mean_lr: step size of the means at first; both are learned.
        kl_weight: of the divergence.
        **kwargs: of `MAML`, but `loss_fn`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.4,
        draws: int = 10,
        std: float = 0.02,
        mean_lr: float = 0.1,
        kl_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, **kwargs)
        require_at_least(1, draws=draws)
        if not std > 0 or not mean_lr >= 0 or not kl_weight >= 0:
            raise ConfigError(f"std={std} must be positive, mean_lr={mean_lr} and kl_weight={kl_weight} not negative.")
        if self.loss_fn is not F.cross_entropy:
            raise ConfigError("PLATIPUS classifies; leave loss_fn out.")
        self.draws, self.kl_weight = draws, kl_weight

        def log_stds() -> nn.ParameterDict:
            of_each = {module_key(name): torch.full_like(value, log(std)) for name, value in self.theta().items()}
            return nn.ParameterDict({name: nn.Parameter(value) for name, value in of_each.items()})

        self.prior_log_std, self.query_log_std = log_stds(), log_stds()
        self.prior_rate, self.query_rate = (nn.Parameter(torch.tensor(float(mean_lr))) for _ in range(2))

    def stds(self, log_std: nn.ParameterDict) -> Params:
        return {name: log_std[module_key(name)].exp() for name in self.theta()}

    def moved_mean(self, batch: Batch, rate: Tensor) -> Params:
        """The mean of the weights after a step on a batch."""
        rates = dict.fromkeys(self.theta(), rate)
        return take_step(lambda p: self.loss(p, batch), self.theta(), SGD(rates), (), self.first_order)[0]

    def adapted_from(self, start: Params, support: Batch) -> Params:
        """Fast weights, as MAML has them, from a start that was drawn."""
        phi = unroll(lambda p: self.loss(p, support), start, self.inner_optimizer, self.steps, self.first_order)
        return phi | support_statistics(self.learner, phi, support.x)

    def adapt(self, support: Batch) -> Any:
        """Fast weights of each draw, stacked; in training, what their distribution is without the queries."""
        prior = Prior(self.moved_mean(support, self.prior_rate), support)
        if self.training:
            return prior
        stds = self.stds(self.prior_log_std)
        keys = dict(zip(stds, torch.arange(len(stds), device=support.x.device), strict=True))
        starts = {
            name: mean + stds[name] * normal(keys[name], self.draws, *mean.shape, dtype=mean.dtype)
            for name, mean in prior.mean.items()
        }
        return self.each(lambda start: self.adapted_from(start, support), starts)

    def each(self, fn: Callable[[Params], Any], params: Params) -> Any:
        """A function of the weights of one draw for all of them, stacked."""
        return vmap(fn, randomness="different")(params)

    def logits_of_each(self, drawn: Params, x: Tensor) -> Tensor:
        """What the weights of each draw say in evaluation, `(L, Q, N)`."""
        return self.each(lambda phi: functional_call(self.learner, phi, (x,)), drawn)

    def query_loss(self, adapted: Any, query: Batch) -> TaskOutput:
        if isinstance(adapted, Prior):
            return self.training_loss(adapted, query)
        preds = log_mean_probabilities(self.logits_of_each(adapted, query.x))
        return TaskOutput(F.nll_loss(preds, query.y), preds)

    def training_loss(self, prior: Prior, query: Batch) -> TaskOutput:
        """Negative evidence lower bound, per query: a draw from the distribution that knows the queries."""
        mean = self.moved_mean(query, self.query_rate)
        stds, prior_stds = self.stds(self.query_log_std), self.stds(self.prior_log_std)
        start = {name: value + stds[name] * torch.randn_like(value) for name, value in mean.items()}
        preds = functional_call(self.learner, self.adapted_from(start, prior.support), (query.x,))
        loss = F.cross_entropy(preds, query.y)
        kl = torch.stack(
            [
                kl_divergence(Gaussian(mean[name], stds[name]), Gaussian(prior.mean[name], prior_stds[name])).sum()
                for name in mean
            ]
        ).sum()
        logs = {"query_loss": loss.detach(), "kl": kl.detach()}
        return TaskOutput(loss + self.kl_weight * kl / len(query.y), preds, logs)
