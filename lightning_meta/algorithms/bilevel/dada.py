"""DADA: an augmentation learned by the gradient of the held-out loss, through relaxed choices.

Li, Hu, Wang, Hospedales, Robertson, Yang: "DADA: Differentiable Automatic Data Augmentation" (2020), arXiv:2003.03780.

Each operation has a probability and a range. Whether an image gets it is a relaxed coin (Gumbel noise for its two
sides), how strong it is, a uniform number within the range; both are functions of noise and of what is learned.

Deviations: one policy goes through all operations of `core.augment`; in the paper a policy is picked of all pairs, by
Gumbel-softmax too. The coin scales the strength of an operation; there, it mixes the image with what the operation
made of it. The gradient is that of the relaxation, without the paper's control variate (RELAX).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params
from lightning_meta.core.augment import LARGEST, augment_within
from lightning_meta.core.dice import subkey, uniform
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule


class DADA(BilevelModule):
    """Probabilities and ranges of operations, learned from held-out images.

    Args:
        backbone, n_classes: of `BilevelModule`.
        probability: of each operation at first. 1: all images get all of them, and only ranges are learned.
        magnitude: of each operation at first, a part of its largest (`core.augment.LARGEST`).
        temperature: of the coins; the lower, the nearer they are to 0 or 1.
        **kwargs: of `BilevelModule`.
    """

    raw_probabilities: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        probability: float = 0.5,
        magnitude: float = 0.1,
        temperature: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if not 0 < probability <= 1 or not 0 < magnitude < 1 or not temperature > 0:
            raise ConfigError(
                f"probability={probability} must be in (0, 1], magnitude={magnitude} in (0, 1) and "
                f"temperature={temperature} positive."
            )
        self.temperature = temperature
        self.raw_magnitudes = nn.Parameter(torch.full((len(LARGEST),), magnitude).logit())
        certain = probability == 1
        raw = None if certain else nn.Parameter(torch.full((len(LARGEST),), probability).logit())
        self.register_parameter("raw_probabilities", raw)

    @property
    def magnitudes(self) -> Tensor:
        """How strong each operation may be, `(K,)`."""
        largest_K = self.raw_magnitudes.new_tensor(list(LARGEST.values()))
        return self.raw_magnitudes.sigmoid() * largest_K

    def augmented(self, x: Tensor) -> Tensor:
        coin, how = subkey(self.key, torch.arange(2, device=x.device))
        largest_BK = self.coins(len(x), coin, x.dtype) * self.magnitudes
        return augment_within(x, dict(zip(LARGEST, largest_BK.unbind(1), strict=True)), how)

    def coins(self, images: int, key: Tensor, dtype: torch.dtype) -> Tensor:
        """Whether each of B images gets each operation, relaxed to (0, 1): `(B, K)`."""
        if self.raw_probabilities is None:
            return torch.ones(images, len(LARGEST), dtype=dtype, device=key.device)
        noise_BK = uniform(key, images, len(LARGEST), dtype=dtype).clamp_min(torch.finfo(dtype).tiny).logit()
        return ((self.raw_probabilities + noise_BK) / self.temperature).sigmoid()

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        return self.losses(weights, Batch(self.augmented(batch.x), batch.y)).mean()

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        return {f"magnitude_{name}": m for name, m in zip(LARGEST, self.magnitudes, strict=True)}
