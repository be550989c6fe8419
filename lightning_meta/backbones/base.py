"""What an algorithm needs to know of a backbone."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.core.task_map import active_transforms
from lightning_meta.errors import ConfigError


class Backbone(nn.Module):
    """A feature extractor: maps `(B, *in_shape)` to `(B, out_features)`, right under vmap and second derivatives."""

    in_shape: tuple[int, ...]
    out_features: int
    outputs: int | None = None  # that a head says of each row of its features; None: one for each class of an episode

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def inner(self) -> nn.Module:
        """What has its layers by the names that its author gave them."""
        return self

    def authors_tensors(self) -> dict[str, Tensor]:
        """Its weights and buffers by the names that its author gave them; what is written into them, it has."""
        return self.inner.state_dict()

    def check_input_shape(self, shape: Sequence[int], source: str) -> None:
        """Raise `ConfigError` unless it takes single inputs of this shape, which `source` has."""
        expected, found = getattr(self, "in_shape", None), tuple(shape)
        if expected is not None and expected not in (found, (prod(found),)):
            if len(expected) == 1:
                remedy = "set the backbone's in_features (of texts, length) to match"
            elif len(found) == 1:
                remedy = "no images: take a backbone for texts, such as EmbeddingAverage, or for numbers, such as MLP"
            else:
                remedy = "set the backbone's in_channels and image_size to match"
            raise ConfigError(f"the backbone expects inputs of shape {expected}, but {source} has {found}; {remedy}.")

    def check_data(self, data: Any) -> None:
        """Raise `ConfigError` when a datamodule has inputs of the right shape that this backbone cannot take."""

    def __getattr__(self, name: str) -> Any:
        """Of what is not there."""
        if name == "out_features":
            raise ConfigError(
                f"{type(self).__name__} does not say how many features it gives; set self.out_features in its __init__."
            )
        return super().__getattr__(name)


class FittedBackbone(Backbone):
    """A backbone that looks at the inputs of meta-training before it is trained, and keeps what it finds.

    `EpisodicModule` calls `fit` once in the life of a backbone, when it is set up with data. What was found belongs in
    buffers and parameters, so that a checkpoint holds it.
    """

    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, inputs: Tensor) -> None:
        """Look at all inputs of meta-training `(E, *in_shape)`. A pure function of them, the same on every rank."""
        raise NotImplementedError


def fastest_layout(images: Tensor) -> Tensor:
    """The same images `(B, C, H, W)`, in memory as convolutions take them fastest; what follows keeps the layout.

    On a CPU that is channels last, outside transforms of `torch.func` (measured on 2 cores, forward and backward of 75
    images: `Conv4` 1.4 times as fast; second derivatives of 5 images of 84 x 84: 0.6 times).
    """
    if images.device.type != "cpu" or active_transforms():
        return images
    channels, height, width = images.shape[1:]
    # Strides set by hand: of a single channel, `contiguous` does not change them, and convolutions go by strides.
    return (
        images.permute(0, 2, 3, 1)
        .contiguous()
        .as_strided(images.shape, (channels * height * width, 1, channels * width, channels))
    )
