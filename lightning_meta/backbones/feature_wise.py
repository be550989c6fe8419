"""Feature-wise transformation: channels are scaled and shifted at random in training, as another domain might.

Tseng, Lee, Huang, Yang: "Cross-Domain Few-Shot Classification via Learned Feature-Wise Transformation" (2020),
arXiv:2001.08735.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.backbones.norm import EpisodicBatchNorm2d, batch_norm_layers, replace_layer
from lightning_meta.errors import ConfigError


class FeatureWiseBatchNorm2d(EpisodicBatchNorm2d):
    """Batch normalisation whose output x, in training, is `(1 + gamma * n) * x + beta * m`, n and m drawn per channel.

    The draws are of an episode: support and query are transformed alike, and each task of a meta-batch by its own.
    In evaluation, and where both deviations are 0, it is batch normalisation.

    Args:
        gamma, beta: standard deviations of scale and shift.
        **kwargs: of `EpisodicBatchNorm2d`.
    """

    def __init__(self, channels: int, gamma: float, beta: float, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        if gamma < 0 or beta < 0:
            raise ConfigError(f"gamma={gamma} and beta={beta} must not be negative; the paper's are 0.3 and 0.5.")
        self.gamma, self.beta = gamma, beta

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not self.training or self.gamma == self.beta == 0:
            return out
        tasks, support = self.meta_batch or (1, len(x))
        like_TC = self.weight.detach().expand(tasks, -1)
        scale_TC, shift_TC = 1 + self.gamma * torch.randn_like(like_TC), self.beta * torch.randn_like(like_TC)
        # Rows are those of all support sets, then of all query sets, task by task.
        sets, tasks_T = (support, len(x) - support), torch.arange(tasks, device=x.device)
        task_B = torch.cat([tasks_T.repeat_interleave(rows // tasks) for rows in sets])
        places = [None] * (x.ndim - 2)
        return (scale_TC[task_B][(..., *places)] * out + shift_TC[task_B][(..., *places)]).to(out.dtype)


def with_feature_wise_transformation(network: torch.nn.Module, gamma: float, beta: float) -> int:
    """Let every batch normalisation of a network transform its features, keeping what it has learned.

    Returns:
        how many there were.
    """
    layers = batch_norm_layers(network)
    for name, layer in layers.items():
        if type(layer) is not EpisodicBatchNorm2d:
            raise ConfigError(
                f"features are transformed between normalisation and activation, but the layer {name} of the backbone "
                f"({type(layer).__name__}) does more than normalise; take Conv4 or a network of torchvision, say."
            )
        settings = {"protocol": layer.protocol, "eps": layer.eps, "momentum": layer.momentum}
        new = FeatureWiseBatchNorm2d(len(layer.weight), gamma, beta, **settings).to(layer.weight)
        new.load_state_dict(layer.state_dict())
        replace_layer(network, name, new)
    return len(layers)
