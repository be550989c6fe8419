"""Networks that learn to classify images, as optimizees."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.backbones import MLP, Backbone, as_backbone
from lightning_meta.core import Batch, Params
from lightning_meta.core.episode import Split
from lightning_meta.core.initial_weights import initial_weights
from lightning_meta.core.sampling import Keys, subkeys, uniform
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.optimizees.optimizees import OptimizeeDataModule, Steps
from lightning_meta.errors import ConfigError


class ImageOptimizees(OptimizeeDataModule):
    """A network and the cross-entropy of its predictions on random minibatches of images.

    Optimizees differ in initial weights and minibatches, whichever their split; all draw from the meta-training images.
    Weights and biases of linear and convolutional layers start uniform within `fan_in^-1/2`, as torch draws them.

    Args:
        images: where images come from; only its data are used, not its episodes. A class is what it has as one. Your
            own images are an `ImageFolder` with `split.fractions: [1, 0, 0]`, which has all its classes for training.
        backbone: of the network. Its parameters are called `backbone.*`.
        fc_hidden: units of fully connected layers with ReLU between the backbone and the output: `fc.*`.
        classes: how many classes to tell apart, taken at even distances in their order. None: all.
        shrink: make images smaller by this factor; each pixel is the mean of a square of former ones.
        batch_size: images of a minibatch, drawn with replacement.
        **kwargs: of `OptimizeeDataModule`.
    """

    def __init__(
        self,
        images: ClassificationDataModule,
        backbone: Backbone,
        fc_hidden: Sequence[int] = (),
        classes: int | None = None,
        shrink: int = 1,
        batch_size: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(batch_size, shrink) < 1:
            raise ConfigError(f"batch_size={batch_size} and shrink={shrink} must be at least 1.")
        self.images, self.backbone, self.fc_hidden = images, as_backbone(backbone, "transductive"), fc_hidden
        self.classes, self.shrink, self.batch_size = classes, shrink, batch_size
        self.name = f"{type(backbone).__name__} on {images.name}"
        self.network = nn.Sequential()  # made in `setup`

    def prepare_data(self) -> None:
        self.images.prepare_data()

    def setup(self, stage: str) -> None:
        if self.network:
            return
        bank = self.images.load_source("train")
        if self.classes is not None:
            if not 2 <= self.classes <= len(bank.size):
                raise ConfigError(
                    f"classes={self.classes} must be between 2 and the {len(bank.size)} classes of "
                    f"{self.images.name}'s training split."
                )
            bank = bank.thinned(self.classes)
        places = [first + np.arange(size) for first, size in zip(bank.first, bank.size, strict=True)]
        images = bank.inputs[torch.from_numpy(np.concatenate(places))]
        self.pixels = F.avg_pool2d(images.float(), self.shrink).round().byte() if self.shrink > 1 else images
        self.backbone.check_input_shape(self.pixels.shape[1:], self.images.name)
        self.n_classes = len(bank.size)
        self.labels_E = torch.from_numpy(np.repeat(np.arange(self.n_classes), bank.size))
        fc = MLP(self.backbone.out_features, self.fc_hidden)
        layers = {"backbone": self.backbone, "fc": fc, "head": nn.Linear(fc.out_features, self.n_classes)}
        self.network = nn.Sequential(OrderedDict(layers))

    def loss(self, params: Params, batch: Batch) -> Tensor:
        x = batch.x.to(params["head.bias"].dtype) / 255
        return F.cross_entropy(functional_call(self.network, params, (x,)), batch.y)

    def sample(self, keys: Keys, steps: Steps) -> tuple[Params, Batch]:
        """Weights `(T, ...)` by name, images `(T, S, B, C, H, W)` uint8 and labels `(T, S, B)`."""
        theta_key, batch_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        drawn_TSB = (uniform(subkeys(batch_key, steps), self.batch_size) * len(self.labels_E)).astype(np.int64)
        rows = torch.from_numpy(drawn_TSB).flatten()
        images = self.pixels.index_select(0, rows)
        labels = self.labels_E[rows].view(drawn_TSB.shape)
        return initial_weights(self.network, theta_key), Batch(images.view(*drawn_TSB.shape, *images.shape[1:]), labels)

    def facts(self, split: Split) -> dict[str, Any]:
        weights = sum(p.numel() for p in self.network.parameters())
        return {**super().facts(split), "weights": weights, "classes": self.n_classes, "batch_size": self.batch_size}

    def describe(self, split: Split) -> str:
        facts = self.facts(split)
        size = f"{facts['weights']} weights, {facts['classes']} classes, minibatches of {self.batch_size}"
        return f"{super().describe(split)}, {size}"
