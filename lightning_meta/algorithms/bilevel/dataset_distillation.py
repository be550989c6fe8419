"""Dataset distillation: a few images, and a step size, on which a network that starts anew learns best.

Wang, Zhu, Torralba, Efros: "Dataset Distillation" (2018), arXiv:1811.10959.

The inner steps are gradient descent on the learned images, all of them in every step. The outer gradient flows through
all steps (`Unrolled`). T trainings are T first weights: the paper's random initialisation, or the same for all, fixed.

Deviations: all steps share one learned rate and all images; in the paper each may have its own. Pixels begin as real
images, the first of each class, or as noise.
"""

from collections.abc import Sequence
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params, Progress
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.bilevel import BilevelModule


class DatasetDistillation(BilevelModule):
    """Images on which trainings learn, in place of those of the data.

    Args:
        backbone, n_classes: of `BilevelModule`.
        in_shape: of an image.
        per_class: learned images of each class.
        inner_lr: what the learned step size begins with.
        initialisation: of the network: `random`, or `fixed`: the same in all trainings, in the test too.
        pixels: what they begin with: `real` images, the first of each class, or `noise`.
        images: the checkpoint of a `KIP` or a `DatasetDistillation`: the trainings learn from its images, as examples
            of their classes, whatever labels KIP has learned.
        learn: false keeps images and step size, to see how well they train a network.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        in_shape: Sequence[int] = (1, 28, 28),
        per_class: int = 1,
        inner_lr: float = 0.02,
        initialisation: Literal["random", "fixed"] = "random",
        pixels: Literal["real", "noise"] = "real",
        images: str | None = None,
        learn: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, inner_lr=1.0, **kwargs)
        require_at_least(1, per_class=per_class)
        if initialisation not in ("random", "fixed") or pixels not in ("real", "noise") or not inner_lr > 0:
            raise ConfigError(
                f"initialisation={initialisation!r} must be random or fixed, pixels={pixels!r} real or noise, and "
                f"inner_lr={inner_lr} positive."
            )
        self.per_class, self.initialisation, self.pixels, self.source = per_class, initialisation, pixels, images
        labels_M = torch.arange(n_classes).repeat_interleave(per_class)
        self.images = nn.Parameter(torch.randn(len(labels_M), *in_shape), requires_grad=learn)
        self.log_rate = nn.Parameter(torch.tensor(log(inner_lr)), requires_grad=learn)
        self.register_buffer("labels_M", labels_M)

    def begin(self, tasks: Trial) -> Progress:
        return super().begin(tasks._replace(key=0 * tasks.key) if self.initialisation == "fixed" else tasks)

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        """A step of length 1 on it is one of the learned length on the images."""
        loss = F.cross_entropy(self.logits(weights, self.images), self.get_buffer("labels_M"))
        return self.log_rate.exp() * loss

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        return {"rate": self.log_rate.exp()}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, BilevelDataModule) and (stage == "fit" or self.provenance is None):
            self.start_from(data)

    @torch.no_grad()
    def start_from(self, data: BilevelDataModule) -> None:
        """Take real images, or those of a checkpoint. (That of this training, which is loaded later, has its own.)"""
        if self.source is not None:
            self.images.copy_(self._saved_images(self.source))
        elif self.pixels == "real":
            self.images.copy_(data.first_of_each_class(self.per_class, self.images.shape[1:]))

    def _saved_images(self, path: str) -> Tensor:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]["images"]
        except (OSError, KeyError, TypeError) as error:
            raise ConfigError(
                f"images={path} is no checkpoint that has learned images ({type(error).__name__})."
            ) from error
        if found.shape != self.images.shape:
            raise ConfigError(
                f"the images of {path} are {[*found.shape]}, but per_class={self.per_class} images of "
                f"n_classes={self.n_classes} are {[*self.images.shape]}; set model.per_class, or in_shape."
            )
        return found

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if data.evaluate != "retrained":
            raise ConfigError("learned images are judged by new trainings on them; set data.evaluate to retrained.")
