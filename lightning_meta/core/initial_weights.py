"""Weights that a network starts from, as a function of a key."""

import torch
from torch import nn

from lightning_meta.core.inner_optimizer import Params
from lightning_meta.core.sampling import Keys, subkeys, uniform


def initial_weights(network: nn.Module, keys: Keys) -> Params:
    """One set of weights for each of T keys, `(T, ...)` by name.

    Weights and biases of linear and convolutional layers are uniform within `fan_in^-1/2`, as torch draws them. The
    other parameters start as they are.
    """
    theta = {name: p.detach().expand(len(keys), *p.shape) for name, p in network.named_parameters()}
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for i, (name, layer) in enumerate(layers.items()):
        bound = layer.weight[0].numel() ** -0.5
        for j, (part, p) in enumerate(layer.named_parameters()):
            key = subkeys(subkeys(keys, [i])[:, 0], [j])[:, 0]
            draws = torch.from_numpy(uniform(key, p.numel(), -bound, bound))
            theta[f"{name}.{part}" if name else part] = draws.view(-1, *p.shape).to(p)
    return theta
