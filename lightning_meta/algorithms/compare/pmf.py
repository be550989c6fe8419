"""P > M > F: pre-train, meta-train as ProtoNet, then fine-tune the whole backbone on each task's support set.

Hu, Li, Stuehmer, Kim, Hospedales: "Pushing the Limits of Simple Pipelines for Few-Shot Learning: External Data and
Fine-Tuning Make a Difference" (2022), arXiv:2204.07305.

P is any network with `pretrained` weights, or the run of a `Baseline`; M is the training of this module; F is its
evaluation. There, distorted copies of the support images are the queries of the prototypes that the images themselves
give, and the backbone descends on the cross-entropy of their names. `finetune_steps=0` leaves F out.

Deviations: all images of a step are distorted alike, by an amount that depends on the step alone, so that a prediction
is a function of the task; in the authors' code each batch is distorted anew, with probability 0.9. They choose the rate
for each domain on a few of its validation tasks, 0 among them; here it is a setting. The cosine has no bias.
"""

from functools import partial
from math import ceil
from random import Random
from typing import Any, Literal

from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms.compare.protonet import ProtoNet
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import Adam, Batch, Episode, Params, TaskOutput, trainable, unroll
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.embedding import Embedded
from lightning_meta.modules.episodic import EpisodicModule

SHIFT = 1 / 8  # of an image's height and width, at most


class PMF(ProtoNet):
    """ProtoNet in training; in evaluation its backbone is fine-tuned to each task. For images `(C, H, W)`.

    Args:
        backbone, distance: of `ProtoNet`.
        finetune_steps: steps of Adam on each task.
        finetune_lr: their size. What suits it depends on the backbone and on how far the task is from its training:
            choose it on validation tasks.
        **kwargs: of `EmbeddingModule`, but `freeze`.
    """

    def __init__(
        self,
        backbone: Backbone,
        distance: Literal["euclidean", "cosine"] = "cosine",
        finetune_steps: int = 50,
        finetune_lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, distance, **kwargs)
        require_at_least(0, finetune_steps=finetune_steps)
        if self.frozen:
            raise ConfigError("freeze=true, but PMF moves the backbone in every task; take ProtoNet.")
        self.finetune_steps, self.inner_optimizer = finetune_steps, Adam(finetune_lr)

    def adapt(self, support: Batch) -> Embedded:
        """Prototypes, and in evaluation the weights of the backbone that gives them."""
        if self.training:
            return super().adapt(support)
        losses = [partial(self.distorted_loss, support=support, step=step) for step in range(self.finetune_steps)]
        start = trainable(self.backbone)
        phi = unroll(losses, start, self.inner_optimizer, self.finetune_steps, first_order=True)
        phi = phi | support_statistics(self.backbone, phi, support.x)
        return Embedded(self.adapt_head(Batch(self.features(phi, support.x), support.y)), phi)

    def distorted_loss(self, phi: Params, support: Batch, step: int) -> Tensor:
        """How well the prototypes of the support images name their distorted copies."""
        prototypes = self.adapt_head(Batch(self.features(phi, support.x), support.y))
        return self.head_loss(prototypes, Batch(self.features(phi, distorted(support.x, step)), support.y)).loss

    def features(self, phi: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, phi, (x,))

    def play(self, tasks: Episode) -> TaskOutput:
        """In evaluation every task has weights of its own, so that nothing can be embedded together."""
        return super().play(tasks) if self.training else EpisodicModule.play(self, tasks)


def distorted(images: Tensor, step: int) -> Tensor:
    """Images `(B, C, H, W)` moved by up to an eighth, with another brightness, saturation and contrast.

    How much, is drawn for the step: brightness moves by up to a half, saturation is multiplied by 0 to 2 and contrast
    by 0.5 to 1.5, as in the authors' code. What comes in from outside is 0.
    """
    if images.ndim != 4:
        raise ConfigError(f"PMF distorts images (C, H, W), but an input is of shape {tuple(images.shape[1:])}.")
    draw = Random(step)
    down, right = (draw.randint(-ceil(size * SHIFT), ceil(size * SHIFT)) for size in images.shape[-2:])
    brighter, saturation, contrast = draw.uniform(-0.5, 0.5), draw.uniform(0, 2), draw.uniform(0.5, 1.5)
    images = images + brighter
    for factor, axes in ((saturation, (1,)), (contrast, (1, 2, 3))):
        mean = images.mean(axes, keepdim=True)
        images = mean + factor * (images - mean)
    return F.pad(images, (right, -right, down, -down))
