"""Conditional Neural Processes: encode each support point, average, and decode a normal distribution for any query.

Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende, Eslami: "Conditional Neural Processes" (2018),
arXiv:1807.01613.

Deviations: the loss is taken on the query set; the paper's also counts the support points. How many of the support
points training reads is drawn for each task (see `keep_some`); the paper draws one number for a whole batch.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.gaussian import Gaussian, log_density
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicLogLikelihood
from lightning_meta.modules import BatchedModule


class ConditionalNeuralProcess(BatchedModule[Any]):
    """A function is the mean of what its support points are encoded to; predictions are means and deviations.

    Shapes of one task: `S` support points, `Q` query points, `X` and `Y` numbers of an input and an output, `D` the
    width. Targets are `(Q, Y)`, predictions `(Q, Y, 2)`: mean and standard deviation. The metric is their
    log-likelihood.

    Args:
        x_size: numbers of an input: 1 for a function of one variable, 2 for the place of a pixel.
        y_size: numbers of an output: 1 for a function or a grey image, 3 for colours.
        width: of hidden layers and of the code of a function.
        layers: hidden layers of each network.
        min_std: smallest standard deviation of a prediction.
        **kwargs: of `BatchedModule`.
    """

    def __init__(
        self,
        x_size: int = 1,
        y_size: int = 1,
        width: int = 128,
        layers: int = 3,
        min_std: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(metric=EpisodicLogLikelihood(), **kwargs)
        if min_std <= 0:
            raise ConfigError(f"min_std={min_std} must be positive: a certain prediction has no log-likelihood.")
        self.x_size, self.y_size, self.min_std = x_size, y_size, min_std
        self.encoder = perceptron(x_size + y_size, width, layers, width)
        self.decoder = perceptron(x_size + width, width, layers, 2 * y_size)

    def adapt(self, support: Batch) -> Any:  # what a subclass returns differs
        return self.represent(support, self.read(support))

    def query_loss(self, adapted: Any, query: Batch) -> TaskOutput:
        return self.score(self.decode(*self.decoder_inputs(adapted, query.x)), query)

    def represent(self, support: Batch, kept_S: Tensor) -> Any:
        """The code `(D,)` of the function: the mean of those of the points that are kept."""
        return pool(self.encoder(self.columns(support)), kept_S) / kept_S.sum(-1, keepdim=True)

    def decoder_inputs(self, code: Any, x_QX: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder reads for each query point, given what `represent` returned: see `decode`."""
        return x_QX, code.unsqueeze(-2)

    def read(self, support: Batch) -> Tensor:
        """Weights `(S,)` of the support points, 1 or 0: in evaluation all are read."""
        return keep_some(support.x) if self.training else torch.ones_like(support.x[..., 0])

    def columns(self, points: Batch) -> Tensor:
        """Points with their values, side by side `(S, X + Y)`."""
        (*rows, x_size), (*y_rows, y_size) = points.x.shape, points.y.shape
        if (rows, x_size, y_size) != (y_rows, self.x_size, self.y_size):
            raise ConfigError(
                f"{type(self).__name__} has x_size={self.x_size} and y_size={self.y_size}, but inputs are of shape "
                f"{tuple(points.x.shape)} and targets of shape {tuple(points.y.shape)}; it plays regression, and both "
                "sizes must be those of the data."
            )
        return torch.cat(points, dim=-1)

    def decode(self, *inputs: Tensor) -> Gaussian:
        """Distributions `(Q, Y)` of outputs, by what the decoder says."""
        mean, spread = self.decoded(*inputs).chunk(2, dim=-1)
        return Gaussian(mean, self.min_std + (1 - self.min_std) * F.softplus(spread))

    def decoded(self, *inputs: Tensor) -> Tensor:
        """The decoder's outputs. It reads all inputs side by side, `(Q, F)` or `(1, F)` each.

        Its first layer maps each on its own: a code that all points share is mapped once, not once for each of them.
        """
        first, *others = self.decoder
        assert isinstance(first, nn.Linear)
        weights = first.weight.split([part.shape[-1] for part in inputs], dim=1)
        hidden: Tensor = first.bias
        for part, weight in zip(inputs, weights, strict=True):
            hidden = hidden + F.linear(part, weight)
        for layer in others:
            hidden = layer(hidden)
        return hidden

    def score(self, prediction: Gaussian, query: Batch) -> TaskOutput:
        """Loss: minus the mean log-density of a query point. Also the mean squared error of the means."""
        loss = -log_density(query.y, prediction).sum(-1).mean(-1)
        mse = (prediction.mean - query.y).square().mean((-2, -1))
        return TaskOutput(loss, torch.stack(prediction, dim=-1), {"mse": mse})


def keep_some(x_SX: Tensor) -> Tensor:
    """Weights `(S,)`, 1 for a random part of the points and 0 for the rest; shapes do not change.

    With u uniform in [0, 1), a point is kept with probability u: every number of points from 0 to S is equally likely.
    None would leave nothing to read, so then one is kept.
    """
    noise_S, share_1 = torch.rand_like(x_SX[..., 0]), torch.rand_like(x_SX.sum(-1).sum(-1, keepdim=True))
    kept_S = (noise_S < share_1) | (noise_S == noise_S.amin(-1, keepdim=True))
    return kept_S.to(x_SX.dtype)


def pool(codes_SD: Tensor, weights_S: Tensor) -> Tensor:
    """Weighted sum `(D,)` of codes."""
    return (weights_S.unsqueeze(-2) @ codes_SD).squeeze(-2)


def perceptron(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """Hidden layers with ReLU, then a linear one."""
    sizes = [inputs, *[width] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (dense(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, dense(width, outputs))


def dense(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with the initial weights of Glorot and Bengio (2010), as in the authors' code.

    Those of PyTorch are smaller by a factor of up to 1.7 in each layer. Through a whole network little of the code of a
    function is then left, and thousands of steps pass until it is read at all.
    """
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def with_columns(x_QF: Tensor, codes_D: Tensor) -> Tensor:
    """Put a code beside every row of `x`: `(Q, F + D)`. What `x` and codes have before these axes is broadcast."""
    rows = (*torch.broadcast_shapes(x_QF.shape[:-2], codes_D.shape[:-1]), x_QF.shape[-2])
    return torch.cat([x_QF.expand(*rows, -1), codes_D.unsqueeze(-2).expand(*rows, -1)], dim=-1)
