"""Neural Processes: a latent variable stands for the function, so that uncertain functions are coherent functions.

Garnelo, Schwarz, Rosenbaum, Viola, Rezende, Eslami, Teh: "Neural Processes" (2018), arXiv:1807.01622.

Deviations: the bound is divided by the number of query points, and its likelihood is that of the query points, without
the support points. Training reads a random part of the support set, as in `cnp.py`. Evaluation draws nothing: the
prediction for a point has the mean and standard deviation of the mixture over some values of q(z | support) that are
fixed once for all, where the paper draws z; its log-likelihood is that of each point by itself, not a joint one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.memory.cnp import ConditionalNeuralProcess, pool, with_columns
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.gaussian import Gaussian, kl_divergence, mixture_moments
from lightning_meta.errors import ConfigError


class Codes(NamedTuple):
    """Sum `(D,)` of the codes of some points, and their number `(1,)`."""

    total: Tensor
    points: Tensor


class NeuralProcess(ConditionalNeuralProcess):
    """Encode the support set into a distribution q of z; train on a bound of the likelihood of the query set.

    Shapes: as in `ConditionalNeuralProcess`; `R` draws of z, `L` its size, which is the width.

    Args:
        draws: how many fixed values of z evaluation takes, even.
        **kwargs: of `ConditionalNeuralProcess`.
    """

    draws_RL: Tensor

    def __init__(self, draws: int = 32, width: int = 128, **kwargs: Any) -> None:
        super().__init__(width=width, **kwargs)
        if draws < 2 or draws % 2:
            raise ConfigError(f"draws={draws} must be even and at least 2: half of them mirror the others.")
        self.to_latent = nn.Linear(width, 2 * width)
        half = torch.randn(draws // 2, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("draws_RL", torch.cat([half, -half]), persistent=False)  # a test may take more

    def adapt(self, support: Batch) -> Any:
        return self.codes(support, self.read(support))

    def query_loss(self, adapted: Any, query: Batch) -> TaskOutput:
        return self.bound(adapted, query, query.x)

    def bound(self, support: Codes, query: Batch, inputs_QF: Tensor) -> TaskOutput:
        """In training minus the evidence lower bound of a query point, in evaluation minus its log-likelihood.

        Args:
            support: its codes.
            query: the points to predict.
            inputs_QF: what the decoder reads of them beside z.
        """
        prior = self.latent(support)
        if not self.training:
            z_RL = prior.mean.unsqueeze(-2) + prior.std.unsqueeze(-2) * self.draws_RL
            components_RQY = self.decode(with_columns(inputs_QF.unsqueeze(-3), z_RL))
            return self.score(mixture_moments(components_RQY, dim=-3), query)
        seen = self.codes(query, torch.ones_like(query.x[..., 0]))
        posterior = self.latent(Codes(support.total + seen.total, support.points + seen.points))
        z_L = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        loss, preds, logs = self.score(self.decode(with_columns(inputs_QF, z_L)), query)
        kl = kl_divergence(posterior, prior).sum(-1)
        return TaskOutput(loss + kl / query.x.shape[-2], preds, logs | {"kl": kl})

    def codes(self, points: Batch, weights_S: Tensor) -> Codes:
        """Of points that count as much as their weights."""
        return Codes(pool(self.encode(points), weights_S), weights_S.sum(-1, keepdim=True))

    def latent(self, codes: Codes) -> Gaussian:
        """Distribution q of z `(L,)`, given the mean of some points' codes. Its deviations lie between 0.1 and 1."""
        mean, spread = self.to_latent(codes.total / codes.points).chunk(2, dim=-1)
        return Gaussian(mean, 0.1 + 0.9 * spread.sigmoid())
