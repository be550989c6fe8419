"""Algorithms whose classifier of the training classes learns from another one, of an earlier training."""

from copy import deepcopy
from typing import Any, Generic

import torch
from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.norm import norm_protocol
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from lightning_meta.modules.embedding import Head
from lightning_meta.modules.pretrained import PretrainedModule
from lightning_meta.pretrained import file_of, start_from, weights_in


class TaughtModule(PretrainedModule[Head], Generic[Head]):
    """Base of them. In training a subclass's `head_loss` finds what the teacher says behind the features, see `parted`.

    Args:
        backbone, n_classes: of `PretrainedModule`.
        teacher: whose backbone, of the same settings, and classifier are learned from: a run by folder or name, whose
            best checkpoint it is, or a file of weights. It is read when a training starts or goes on, and does not
            change. None: there is none.
        **kwargs: of `PretrainedModule`.
    """

    def __init__(
        self, backbone: Backbone, n_classes: int | None = None, teacher: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.teacher = teacher
        # In a list it is no part of the module: not trained, and not in checkpoints.
        self._teacher: list[nn.Sequential] = []

    @property
    def is_taught(self) -> bool:
        return bool(self._teacher)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.teacher is not None:
            self._teacher = [self.read_teacher(self.teacher)]

    def read_teacher(self, place: str) -> nn.Sequential:
        """A copy of the backbone and of the classifier with the weights of a run or a file. Raises `ConfigError`."""
        if self.frozen:
            raise ConfigError(f"freeze leaves nothing to learn from teacher={place} but a classifier; leave one out.")
        if (protocol := norm_protocol(self.backbone)) not in ("running", "no batch statistics"):
            raise ConfigError(
                f"teacher={place} would normalise by the images at hand (norm: {protocol}), and what it says of one "
                "depend on others; set the backbone's norm to running."
            )
        backbone, classifier = deepcopy(self.backbone), deepcopy(self.trained_classifier)
        start_from(backbone, place, option="teacher")
        path = file_of(place, option="teacher")
        there = weights_in(path, option="teacher")
        found = {name: there.get(f"classifier.{name}") for name in classifier.state_dict()}
        shapes = {name: value.shape for name, value in found.items() if value is not None}
        if shapes != {name: value.shape for name, value in classifier.state_dict().items()}:
            what = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items()) or "none"
            raise ConfigError(
                f"teacher={place}: a classifier of {classifier.out_features} classes from {classifier.in_features} "
                f"features, with biases, is needed, but of such {path} has {what}; give a run of Baseline, RFS or "
                "BornAgain on the same classes."
            )
        classifier.load_state_dict(found)
        return nn.Sequential(backbone, classifier).eval().requires_grad_(False)

    def taught(self, images_TB: Tensor) -> Tensor:
        """What the teacher says of images `(T, B, ...)`: its class logits `(T, B, C)`."""
        with torch.no_grad():
            return self._teacher[0](images_TB.flatten(0, 1)).unflatten(0, images_TB.shape[:2])

    def embed_tasks(self, tasks: Episode) -> Episode:
        """In training, behind the features of an image stand the teacher's logits."""
        embedded = super().embed_tasks(tasks)
        if not self.training or not self.is_taught:
            return embedded
        return Episode(
            *(
                Batch(torch.cat([features.x, self.taught(given.x).to(features.x.dtype)], dim=-1), given.y)
                for features, given in zip(embedded, tasks, strict=True)
            )
        )

    def parted(self, rows: Tensor) -> list[Tensor]:
        """Features and the teacher's logits, of what `embed_tasks` has made."""
        size = self.backbone.out_features
        return list(rows.split([size, rows.shape[-1] - size], dim=-1))
