"""Algorithms that read the rows of a table, whatever its columns are."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core.transformer import Layer, LayerNorm
from lightning_meta.errors import ConfigError
from lightning_meta.modules.batched import BatchedModule

LARGEST = 10.0  # of a standardised number: farther ones are cut off

Adapted = TypeVar("Adapted")


class Scaling(NamedTuple):
    """Mean and standard deviation `(1, F)` of the columns, and the factor `(1, 1)` by how many of them vary."""

    mean: Tensor
    std: Tensor
    factor: Tensor


class TabularModule(BatchedModule[Adapted]):
    """Base of Transformers whose rows are those of a table.

    Columns are standardised by the support set alone. A gap (NaN) is its column's mean; a column that is constant in
    the support set is left out.

    Args:
        features: the most columns of a table.
        width: of rows.
        depth: layers of the Transformer.
        heads: of its attention; the width is a multiple of them.
        **kwargs: of `BatchedModule`.
    """

    def __init__(self, features: int = 30, width: int = 64, depth: int = 4, heads: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features
        self.embed = nn.Linear(features, width)
        self.transformer = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = LayerNorm(width)

    def rows(self, x: Tensor, axes: int) -> Tensor:
        """Inputs as rows of numbers `(S, F)`, with so many axes up to that of rows; an image is a row of pixels."""
        x_SF = x.flatten(axes)
        if x_SF.shape[-1] > self.features:
            raise ConfigError(
                f"{type(self).__name__} has features={self.features}, but a row has {x_SF.shape[-1]} numbers; select "
                "columns or train with more."
            )
        return x_SF

    def embedded(self, x_SF: Tensor, scaling: Scaling) -> Tensor:
        """Rows of features `(S, D)`."""
        mean, std, factor = scaling
        there = std > 0
        scaled_SF = torch.where(there, (x_SF - mean) / torch.where(there, std, 1), 0).nan_to_num(0)
        # As if all columns were there: smaller rows would drown in what the layers add to them.
        scaled_SF = scaled_SF.clamp(-LARGEST, LARGEST) * (factor * self.features**0.5)
        return self.embed(F.pad(scaled_SF, (0, self.features - x_SF.shape[-1])))


def scaling_of(x_SF: Tensor, kept_S: Tensor) -> Scaling:
    """Of the rows that are kept, without gaps. Rounding does not make a constant column vary."""
    there_SF = ~x_SF.isnan() * kept_S.unsqueeze(-1)
    x_SF = x_SF.nan_to_num()
    count_1F = there_SF.sum(-2, keepdim=True).clamp_min(1)
    mean = (x_SF * there_SF).sum(-2, keepdim=True) / count_1F
    std = (((x_SF - mean).square() * there_SF).sum(-2, keepdim=True) / count_1F).sqrt()
    std = torch.where(std > 1e-6 * mean.abs(), std, 0)
    vary = (std > 0).sum(-1, keepdim=True).clamp_min(1).to(x_SF)
    return Scaling(mean, std, vary.rsqrt())
