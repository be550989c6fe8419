"""Training episodes without labels: an image and its augmentations are a class, or a cluster of images is.

Only the source of training episodes changes, so every algorithm learns without labels. Validation and test keep the
true classes: the best checkpoint is chosen with labels of validation classes, as in the papers' code.

| tasks | a class of an episode is |
|---|---|
| `UMTRA` | one image, and what augmentation makes of it |
| `AAL` | `k_shot` images by chance; its queries are augmentations of them |
| `CACTUs` | a cluster of features: of the pixels, of an autoencoder, or of a backbone that is trained already |

Khodadadeh, Boloni, Shah: "Unsupervised Meta-Learning for Few-Shot Image Classification" (2019), arXiv:1811.11819
(UMTRA). Antoniou, Storkey: "Assume, Augment and Learn: Unsupervised Few-Shot Meta-Learning via Random Labels and Data
Augmentation" (2019), arXiv:1902.09884 (AAL). Hsu, Levine, Finn: "Unsupervised Learning via Meta-Learning" (2019),
arXiv:1810.02334 (CACTUs).

Deviations: UMTRA's authors shift drawings and erase pixels, and take AutoAugment's policies for photographs; here,
strengths of `core.augment` are drawn uniformly, and nothing is erased. CACTUs' features come from ACAI, BiGAN and
DeepCluster there; `Autoencoder` is a plain one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone, norm_protocol
from lightning_meta.core import Batch, Episode
from lightning_meta.core.augment import augment, check_ranges
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import Keys, choose, subkeys, uniform
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.episodes import Settings, TaskSource
from lightning_meta.datamodules.mixed_source import MixedSource
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.pretrained import backbone_of, start_from

DRAWINGS = {"rotate": 10.0, "shift_x": 0.2, "shift_y": 0.2, "shear_x": 0.2, "shear_y": 0.2, "scale": 0.2}
AT_ONCE = 500  # images whose features are computed together


class UnsupervisedTasks(Settings):
    """How training episodes are made of images alone. One writes `source`."""

    def source(self, images: Tensor, shape: EpisodeShape) -> TaskSource:
        """The source of episodes of a shape, from all training images `(E, C, H, W)` uint8."""
        raise NotImplementedError


class UMTRA(UnsupervisedTasks):
    """An image drawn is a class; its other examples are augmentations of it.

    Two images of an episode may show the same thing. With C true classes of equal size this happens in
    1 - (1 - 1/C) ... (1 - (N - 1)/C) of the episodes: the higher the way, the oftener.

    Args:
        ranges: how strong each operation of `core.augment` may be; those that are left out are not applied. Default:
            `DRAWINGS`, for drawings whose turns are other classes.
        augment_support: augment the first support image of a class too. The paper does not; metric methods gain by it.
        flip: half of the augmented images are mirrored, left for right.
    """

    def __init__(
        self, ranges: Mapping[str, float] | None = None, augment_support: bool = False, flip: bool = False
    ) -> None:
        self.ranges = dict(DRAWINGS if ranges is None else ranges)
        if not self.ranges and not flip:
            raise ConfigError("ranges is empty and flip=false, so queries would be the support images themselves.")
        check_ranges("data.unsupervised.ranges", self.ranges)
        self.augment_support, self.flip = augment_support, flip

    def source(self, images: Tensor, shape: EpisodeShape) -> "AugmentedSource":
        return AugmentedSource(images, self.ranges, self.augment_support, self.flip)


class AAL(UMTRA):
    """The support images of a class are any; its queries are augmentations of them, in turn."""

    def source(self, images: Tensor, shape: EpisodeShape) -> "AugmentedSource":
        return replace(super().source(images, shape), images_of_a_class=shape.k_shot)


class Augmented(NamedTuple):
    """Episodes of an `AugmentedSource`.

    Attributes:
        rows: `(T, N, I)`, the images of each class.
        dice: `(T, N, M, operations + 1)` uniform numbers, for support examples and then queries.
    """

    rows: Tensor
    dice: Tensor


@dataclass(frozen=True)
class AugmentedSource(TaskSource):
    """Episodes of images and their augmentations.

    Attributes:
        images: `(E, C, H, W)` uint8.
        ranges, augment_support, flip: of `UMTRA`.
        images_of_a_class: how many a class has; example m of a class, in support and in query, is made of image m
            modulo this number. The first ones of the support are the images themselves.
    """

    images: Tensor
    ranges: Mapping[str, float]
    augment_support: bool = False
    flip: bool = False
    images_of_a_class: int = 1

    def check(self, shape: EpisodeShape) -> None:
        needed = shape.n_way * self.images_of_a_class
        if needed > len(self.images):
            raise ConfigError(f"an episode of {shape} takes {needed} images, but there are {len(self.images)}.")

    def draw(self, keys: Keys, shape: EpisodeShape) -> Augmented:
        image_key, dice_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
        n, k, q = shape
        rows = torch.from_numpy(choose(image_key, len(self.images), n * self.images_of_a_class))
        dice = torch.from_numpy(uniform(dice_key, n * (k + q) * (len(self.ranges) + 1))).float()
        rows, dice = rows.view(-1, n, self.images_of_a_class), dice.view(-1, n, k + q, len(self.ranges) + 1)
        return Augmented(rows.to(self.images.device), dice.to(self.images.device))

    def make(self, drawn: Augmented, shape: EpisodeShape) -> Episode:
        t, (n, k, q) = len(drawn.rows), shape
        images = self.images[drawn.rows].float().div(255)
        place_M = torch.cat([torch.arange(k), torch.arange(q)]).to(images.device) % self.images_of_a_class
        x = self._augmented(images[:, :, place_M].flatten(0, 2), drawn.dice.flatten(0, 2))
        x = x.view(t, n, k + q, *images.shape[3:])
        if not self.augment_support:
            kept = min(k, self.images_of_a_class)
            x = torch.cat([images[:, :, :kept], x[:, :, kept:]], 2)
        label_TN = torch.arange(n, device=images.device).expand(t, n)
        parts = (x[:, :, :k], x[:, :, k:])
        return Episode(*(Batch(part.flatten(1, 2), label_TN.repeat_interleave(part.shape[2], 1)) for part in parts))

    def _augmented(self, x: Tensor, dice: Tensor) -> Tensor:
        if self.flip:
            x = torch.where((dice[:, 0] < 0.5)[:, None, None, None], x.flip(-1), x)
        sides = 2 * dice[:, 1:] - 1
        strengths = {name: most * side for (name, most), side in zip(self.ranges.items(), sides.unbind(1), strict=True)}
        return augment(x, strengths).clamp(0, 1)

    def to(self, device: torch.device) -> "AugmentedSource":
        return replace(self, images=self.images.to(device))


class Features(Settings):
    """What images are clustered by."""

    def __call__(self, images: Tensor) -> np.ndarray:
        """From images `(E, C, H, W)` uint8 to `(E, D)`."""
        raise NotImplementedError


class Pixels(Features):
    """The first principal components of the pixels.

    Args:
        components: how many.
    """

    def __init__(self, components: int = 64) -> None:
        require_at_least(1, components=components)
        self.components = components

    def __call__(self, images: Tensor) -> np.ndarray:
        x = images.flatten(1).double().div(255)
        x = x - x.mean(0)
        if self.components > x.shape[1]:
            raise ConfigError(f"components={self.components}, but an image has {x.shape[1]} pixels; take fewer.")
        directions = torch.linalg.eigh(x.T @ x).eigenvectors[:, -self.components :]
        return (x @ directions).float().cpu().numpy()


class OfBackbone(Features):
    """The features of a backbone, scaled to unit length.

    Args:
        backbone: the network, with the settings that it was trained with.
        pretrained: its weights: a file, or a run by folder or name.
    """

    def __init__(self, backbone: Backbone, pretrained: str) -> None:
        check_norm(backbone)
        self.backbone, self.pretrained = backbone, pretrained

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        start_from(self.backbone, self.pretrained, "data.unsupervised.features.pretrained")
        return unit_features(self.backbone, images)


class OfRun(Features):
    """The features of the backbone of a run, scaled to unit length. The run knows its settings.

    Args:
        run: by folder or name: the best checkpoint of its newest run, or else the last one. Its training saw labels
            unless it was without.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        backbone = backbone_of(self.run, "data.unsupervised.embedding")
        check_norm(backbone)
        backbone.check_input_shape(images.shape[1:], "the data")
        return unit_features(backbone, images)


def check_norm(backbone: Backbone) -> None:
    """Raise `ConfigError` where the features of an image depend on the images that are computed with it."""
    if {"transductive", "inductive"} & {*norm_protocol(backbone).split("/")}:
        raise ConfigError(
            "features of a cluster must not depend on which images are computed together, but this backbone's do; "
            "take one with norm: running."
        )


def unit_features(backbone: Backbone, images: Tensor) -> np.ndarray:
    """The features `(E, D)` of images, scaled to unit length."""
    backbone.eval()
    features = [backbone(part.cpu().float().div(255)) for part in images.split(AT_ONCE)]
    return F.normalize(torch.cat(features), dim=1).numpy()


class Autoencoder(Features):
    """The code of a small convolutional autoencoder, which is trained on the images when they are clustered.

    The same images and seed give the same codes, on as many threads.

    Args:
        code: numbers that an image is made into.
        steps: of training, by Adam on the squared error of the pixels.
        batch_size: images of a step.
        lr: learning rate.
        seed: of the weights and the batches.
    """

    def __init__(
        self, code: int = 32, steps: int = 2000, batch_size: int = 64, lr: float = 1e-3, seed: int = 0
    ) -> None:
        require_at_least(1, code=code, steps=steps, batch_size=batch_size)
        self.code, self.steps, self.batch_size, self.lr, self.seed = code, steps, batch_size, lr, seed

    def __call__(self, images: Tensor) -> np.ndarray:
        images = images.cpu()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            encoder, decoder = coder(images.shape[1:], self.code)
            adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], self.lr)
            for _ in range(self.steps):
                x = images[torch.randint(len(images), (self.batch_size,))].float().div(255)
                adam.zero_grad()
                F.mse_loss(decoder(encoder(x)), x).backward()
                adam.step()
        with torch.no_grad():
            return torch.cat([encoder(part.float().div(255)) for part in images.split(AT_ONCE)]).numpy()


def coder(shape: Sequence[int], code: int) -> tuple[nn.Module, nn.Module]:
    """Networks from images of a shape `(C, H, W)` to codes and back."""
    channels, *size = shape
    small = [-(-side // 4) for side in size]  # two strides of 2
    encoder = nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * prod(small), code),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(code, 32 * prod(small)), nn.ReLU(), nn.Unflatten(1, (32, *small)),
        nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(),
        nn.Upsample(size=tuple(size)), nn.Conv2d(16, channels, 3, padding=1),
    )  # fmt: skip
    return encoder, decoder


@dataclass(frozen=True)
class ClusterBank(ClassBank):
    """Clusters as classes. The images stay where they are, whatever cluster they are in.

    Attributes:
        order: the images of a cluster side by side; `first` and `size` count in it.
    """

    order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, images: Tensor, cluster_E: np.ndarray, smallest: int = 1) -> "ClusterBank":
        """The clusters of at least so many images."""
        size = np.bincount(cluster_E)
        first, kept = size.cumsum() - size, size >= smallest
        return cls(images, first[kept], size[kept], order=cluster_E.argsort(kind="stable"))

    def draw_rows(self, keys: Keys, classes_TN: npt.NDArray[np.int64], examples: int) -> npt.NDArray[np.int64]:
        return self.order[super().draw_rows(keys, classes_TN, examples)]


class CACTUs(UnsupervisedTasks):
    """Clusters of the training images are classes.

    Clusters smaller than the examples that an episode takes of a class are left out.

    Args:
        clusters: of k-means.
        features: what is clustered. None: `Pixels`.
        embedding: a run by folder or name, whose backbone's features are clustered, in place of `features`.
        partitions: so many clusterings, each after random scaling of the features; an episode is of one of them.
        seed: of the clusterings.
    """

    def __init__(
        self,
        clusters: int = 500,
        features: Features | None = None,
        partitions: int = 1,
        seed: int = 0,
        embedding: str | None = None,
    ) -> None:
        require_at_least(1, clusters=clusters, partitions=partitions)
        if features is not None and embedding is not None:
            raise ConfigError(f"features={features!r} and embedding={embedding} are two answers; leave one out.")
        self.clusters = clusters
        self.features = OfRun(embedding) if embedding is not None else features or Pixels()
        self.partitions, self.seed = partitions, seed

    def source(self, images: Tensor, shape: EpisodeShape) -> TaskSource:
        if self.clusters > len(images):
            raise ConfigError(f"clusters={self.clusters}, but there are {len(images)} training images; take fewer.")
        features = self.features(images)
        smallest = shape.k_shot + shape.n_query
        banks = {
            f"partition {p}": ClusterBank.of(images, self._cluster(features, p), smallest)
            for p in range(self.partitions)
        }
        for name, bank in banks.items():
            if len(bank.size) < shape.n_way:
                raise ConfigError(
                    f"{len(bank.size)} of the {self.clusters} clusters ({name}) have the {smallest} images that "
                    f"k_shot={shape.k_shot} and n_query={shape.n_query} take, but n_way={shape.n_way}; take fewer "
                    "clusters (data.unsupervised.clusters) or queries (data.train.n_query)."
                )
        first = next(iter(banks.values()))
        if self.partitions == 1:
            return first
        return MixedSource(first, banks, [1.0] * self.partitions, [0] * self.partitions)

    def _cluster(self, features: np.ndarray, partition: int) -> np.ndarray:
        """The cluster of each image `(E,)`."""
        from sklearn.cluster import KMeans  # a second, which only those pay who cluster
        from threadpoolctl import threadpool_limits

        if self.partitions > 1:
            key = subkeys(np.asarray(self.seed, np.uint64), [partition])
            features = features * uniform(key, features.shape[1])[0]
        with threadpool_limits(1):  # sums of several threads are of no fixed order, and ranks must agree
            return KMeans(self.clusters, n_init=1, random_state=self.seed + partition).fit_predict(features)
