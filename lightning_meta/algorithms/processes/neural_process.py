"""Neural Processes: a latent variable stands for the function, so that uncertain functions are coherent functions.

Garnelo, Schwarz, Rosenbaum, Viola, Rezende, Eslami, Teh: "Neural Processes" (2018), arXiv:1807.01622.

Deviations: beside z the decoder reads the mean code of the support set. So does the neural process that the authors
compare with and publish in Kim et al. (2019), arXiv:1901.05761; here the reason is that z alone does not train: see
`NeuralProcess`. The bound is divided by the number of query points. Training reads a random part of the support set, as
in `cnp.py`. Evaluation draws nothing: the prediction for a point has the mean and standard deviation of the mixture
over some values of q(z | support) that are fixed once for all, where the paper draws z; its log-likelihood is that of
each point by itself, not a joint one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.processes.cnp import ConditionalNeuralProcess, dense, perceptron, pool
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.gaussian import Gaussian, kl_divergence, mixture_moments
from lightning_meta.errors import ConfigError


class Codes(NamedTuple):
    """Sum `(D,)` of the codes of some points, and their number `(1,)`."""

    total: Tensor
    points: Tensor


class Belief(NamedTuple):
    """What is known of a function: the support points' codes for z, and what `represent` returned."""

    latent: Codes
    code: Any


class NeuralProcess(ConditionalNeuralProcess):
    """Encode the support set into a code and a distribution q of z; train on a bound of the query set's likelihood.

    Shapes: as in `ConditionalNeuralProcess`; `R` draws of z, `L` its size, which is the width.

    Args:
        draws: how many fixed values of z evaluation takes, even.
        x_size, y_size, width, layers: of `ConditionalNeuralProcess`.
        **kwargs: of `ConditionalNeuralProcess`.
    """

    draws_RL: Tensor

    def __init__(
        self, draws: int = 32, x_size: int = 1, y_size: int = 1, width: int = 128, layers: int = 3, **kwargs: Any
    ) -> None:
        super().__init__(x_size=x_size, y_size=y_size, width=width, layers=layers, **kwargs)
        if draws < 2 or draws % 2:
            raise ConfigError(f"draws={draws} must be even and at least 2: half of them mirror the others.")
        self.latent_encoder = perceptron(x_size + y_size, width, layers, width)
        self.to_latent = nn.Sequential(dense(width, width), nn.ReLU(), dense(width, 2 * width))
        self.decoder = perceptron(x_size + 2 * width, width, layers, 2 * y_size)
        half = torch.randn(draws // 2, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("draws_RL", torch.cat([half, -half]), persistent=False)  # a test may take more

    def adapt(self, support: Batch) -> Belief:
        kept_S = self.read(support)
        return Belief(self.codes(support, kept_S), self.represent(support, kept_S))

    def query_loss(self, belief: Belief, query: Batch) -> TaskOutput:
        """In training minus the evidence lower bound of a query point, in evaluation minus its log-likelihood."""
        inputs, prior = self.decoder_inputs(belief.code, query.x), self.latent(belief.latent)
        if not self.training:
            z_RL = prior.mean.unsqueeze(-2) + prior.std.unsqueeze(-2) * self.draws_RL
            components_RQY = self.decode(*(part.unsqueeze(-3) for part in inputs), z_RL.unsqueeze(-2))
            return self.score(mixture_moments(components_RQY, dim=-3), query)
        seen = self.codes(query, torch.ones_like(query.x[..., 0]))
        posterior = self.latent(Codes(belief.latent.total + seen.total, belief.latent.points + seen.points))
        z_L = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        out = self.score(self.decode(*inputs, z_L.unsqueeze(-2)), query)
        kl = kl_divergence(posterior, prior).sum(-1)
        return out._replace(loss=out.loss + kl / query.x.shape[-2], logs=out.logs | {"kl": kl})

    def codes(self, points: Batch, weights_S: Tensor) -> Codes:
        """Of points that count as much as their weights."""
        return Codes(pool(self.latent_encoder(self.columns(points)), weights_S), weights_S.sum(-1, keepdim=True))

    def latent(self, codes: Codes) -> Gaussian:
        """Distribution q of z `(L,)`, given the mean of some points' codes. Its deviations lie between 0.1 and 1."""
        mean, spread = self.to_latent(codes.total / codes.points).chunk(2, dim=-1)
        return Gaussian(mean, 0.1 + 0.9 * spread.sigmoid())
