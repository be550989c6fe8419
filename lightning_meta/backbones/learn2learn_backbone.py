"""The networks of learn2learn as backbones.

Arnold, Mahajan, Datta, Bunner, Zarkias: "learn2learn: A Library for Meta-Learning Research" (2020), arXiv:2008.12284.
"""

from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.norm import NormProtocol, with_episodic_norm
from lightning_meta.errors import ConfigError
from lightning_meta.interop.learn2learn import import_learn2learn


class Learn2LearnBackbone(Backbone):
    """A network of `learn2learn.vision.models`, with its own initial weights and our batch normalisation.

    Its `nn.BatchNorm2d` layers are replaced, because under vmap their second derivatives would be wrong.

    Args:
        name: of the class. `CNN4Backbone` and `ResNet12Backbone` take any number of channels, `WRN28Backbone` three.
        in_channels: of the images.
        image_size: height and width in pixels.
        norm: whose statistics normalise, see `EpisodicBatchNorm2d`.
        options: other arguments of the class, such as `hidden_size` or `dropblock_dropout`. DropBlock of
            `ResNet12Backbone` cannot run under vmap: set `dropblock_dropout: 0`, or the algorithm's `task_mode: loop`.
    """

    def __init__(
        self,
        name: Literal["CNN4Backbone", "ResNet12Backbone", "WRN28Backbone"],
        in_channels: int = 3,
        image_size: int = 84,
        norm: NormProtocol = "transductive",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        make = getattr(import_learn2learn().vision.models, name)
        channels = {"channels": in_channels} if "channels" in signature(make).parameters else {}
        if not channels and in_channels != 3:
            raise ConfigError(f"{name} takes images of 3 channels, not in_channels={in_channels}.")
        self.network = make(**channels, **(options or {}))
        with_episodic_norm(self.network, norm)
        self.in_shape = (in_channels, image_size, image_size)
        with torch.no_grad():
            self.out_features = self.network(torch.zeros(2, *self.in_shape)).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
