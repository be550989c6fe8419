"""Multilayer perceptron, the network of the sinusoid experiments."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone


class MLP(Backbone):
    """Hidden layers with ReLU; the head that follows belongs to the algorithm.

    The default is MAML's sinusoid network, 2 x 40 (arXiv:1703.03400, section 5.1).
    """

    def __init__(self, in_features: int = 1, hidden: Sequence[int] = (40, 40)) -> None:
        super().__init__()
        sizes = [in_features, *hidden]
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*(module for layer in layers for module in layer))
        self.in_shape = (in_features,)
        self.out_features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, ...)`, flattened to `(B, in_features)`, to features `(B, hidden[-1])`."""
        return self.layers(x.flatten(1))
