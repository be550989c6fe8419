"""Multilayer perceptron, the network of the sinusoid experiments."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone

Activation = Literal["relu", "sigmoid", "tanh", "none"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "none": nn.Identity,
}  # fmt: skip


class MLP(Backbone):
    """Hidden layers; the head that follows belongs to the algorithm.

    The default is MAML's sinusoid network, 2 x 40 (arXiv:1703.03400, section 5.1). A layer with the activation `none`
    is linear: the vectors of features that are 0 or 1, added up.
    """

    def __init__(self, in_features: int = 1, hidden: Sequence[int] = (40, 40), activation: Activation = "relu") -> None:
        super().__init__()
        sizes = [in_features, *hidden]
        layers = [(nn.Linear(a, b), ACTIVATIONS[activation]()) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*(module for layer in layers for module in layer))
        self.in_shape = (in_features,)
        self.out_features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, ...)`, flattened to `(B, in_features)`, to features `(B, hidden[-1])`."""
        return self.layers(x.flatten(1))
