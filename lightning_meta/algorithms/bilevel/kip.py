"""Kernel inducing points: a few images, learned so that kernel regression on them predicts all others.

Nguyen, Chen, Lee: "Dataset Meta-Learning from Kernel Ridge-Regression" (2021), arXiv:2011.00050. With `learn: labels`,
its label solve: given images, the labels that predict best, in closed form.

The inner training has a closed form, so nothing is carried. The kernel is that of an infinitely wide network (`fc_ntk`)
or `rbf`. A step predicts the held-out images of the trial from the learned ones.

Deviations: pixels and labels are learned as they are, without the authors' preprocessing (ZCA) and without random
networks; the ridge is relative to the mean of the kernel's diagonal, as in their code.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.kernels import Kernel, fc_ntk, rbf, ridge_coefficients
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules.base import MetaModule

KERNELS: dict[str, Kernel] = {"fc_ntk": fc_ntk, "rbf": rbf}


class KIP(MetaModule):
    """Images and labels whose kernel ridge regression has the least error on others.

    Before training they are the first images to learn from that the data have of each class, with their labels.

    Args:
        in_shape: of an image.
        n_classes: of the data.
        per_class: learned images of each class.
        learn: `images`, `both` images and labels, or `labels`: those alone, solved for once on all held-out images.
        kernel: `fc_ntk` or `rbf`.
        ridge: of the regression, times the mean of the kernel's diagonal.
        **kwargs: of `MetaModule`.
    """

    plays = BilevelDataModule

    def __init__(
        self,
        in_shape: Sequence[int] = (1, 28, 28),
        n_classes: int = 10,
        per_class: int = 1,
        learn: Literal["images", "labels", "both"] = "both",
        kernel: Literal["fc_ntk", "rbf"] = "fc_ntk",
        ridge: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(1, per_class=per_class)
        if learn not in ("images", "labels", "both") or kernel not in KERNELS or ridge < 0:
            raise ConfigError(
                f"learn={learn!r} must be images, labels or both, kernel={kernel!r} fc_ntk or rbf, and ridge={ridge} "
                "not negative."
            )
        self.measure_by(EpisodicAccuracy())
        self.n_classes, self.per_class, self.learn, self.kernel, self.ridge = n_classes, per_class, learn, kernel, ridge
        classes = torch.arange(n_classes).repeat_interleave(per_class)
        self.images = nn.Parameter(torch.rand(len(classes), *in_shape), requires_grad=learn != "labels")
        self.labels = nn.Parameter(self.targets(classes), requires_grad=learn == "both")

    def targets(self, labels: Tensor) -> Tensor:
        """What is regressed on: one-hot labels less their mean, `(B, C)` float64."""
        return F.one_hot(labels, self.n_classes).double() - 1 / self.n_classes

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernel of two sets of images, in float64: the systems are nearly singular."""
        first = a.flatten(1).double()
        return KERNELS[self.kernel](first, first if a is b else b.flatten(1).double())

    def coefficients(self) -> Tensor:
        """Of the regression on the learned images, `(M, C)`."""
        return ridge_coefficients(self.similarity(self.images, self.images), self.labels.double(), self.ridge)

    def predict(self, x: Tensor, coefficients_MC: Tensor) -> Tensor:
        """Scores `(B, C)`."""
        return self.similarity(x, self.images) @ coefficients_MC

    def query_loss(self, coefficients_MC: Tensor, query: Batch) -> TaskOutput:
        """Half the squared error, summed over classes."""
        preds_QC = self.predict(query.x, coefficients_MC)
        loss = 0.5 * (preds_QC - self.targets(query.y)).square().sum(1).mean()
        return TaskOutput(loss, preds_QC)

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with torch.autocast(self.device.type, enabled=False):
            coefficients_MC = self.coefficients()
            of_trials = [self.query_loss(coefficients_MC, Batch(x, y)) for x, y in zip(*tasks.query, strict=True)]
        preds = torch.stack([out.preds for out in of_trials])
        values = {self.metric.name: self.metric.per_episode(preds, tasks.query.y)}
        return {"loss": torch.stack([out.loss for out in of_trials]), **values}, {"preds": preds}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, BilevelDataModule):
            return
        if data.n_classes != self.n_classes:
            raise ConfigError(
                f"KIP learns images of n_classes={self.n_classes}, but {data.name} has {data.n_classes}; set "
                f"model.n_classes to {data.n_classes}."
            )
        if data.truncation != 1 or data.unroll_steps is not None:
            raise ConfigError(
                f"a kernel has no inner steps, but data.truncation={data.truncation} and data.unroll_steps="
                f"{data.unroll_steps}; set them to 1 and null."
            )
        if stage == "fit" or self.provenance is None:
            self.start_from(data)

    @torch.no_grad()
    def start_from(self, data: BilevelDataModule) -> None:
        """Take the first images of each class. (A checkpoint, which is loaded later, brings its own.)"""
        self.images.copy_(self.first_images(data))
        if self.learn == "labels":
            self.labels.copy_(self.solved_labels(*data.all_held_out()))

    def first_images(self, data: BilevelDataModule) -> Tensor:
        """The first images of each class that there are to learn from, `(M, C, H, W)`."""
        return data.first_of_each_class(self.per_class, self.images.shape[1:])

    def solved_labels(self, x: Tensor, y: Tensor) -> Tensor:
        """The labels `(M, C)` that predict these examples with the least squared error, given the images.

        By the pseudo-inverse of the predictions as a function of the labels.
        """
        eye = torch.eye(len(self.images)).to(self.images).double()
        of_labels_QM = self.predict(x, ridge_coefficients(self.similarity(self.images, self.images), eye, self.ridge))
        return torch.linalg.lstsq(of_labels_QM, self.targets(y)).solution
