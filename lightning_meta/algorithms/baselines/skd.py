"""SKD: pre-training that tells turns of images from the class logits; then a student that is told not to see them.

Rajasegaran, Khan, Hayat, Khan, Shah: "Self-supervised Knowledge Distillation for Few-shot Learning" (2020),
arXiv:2006.09785.

Generation zero sees every image in all four quarter turns, and names its class and, from its class logits, its turn.
Generation one starts as a copy of it. It is to keep what it said of an image, by distillation and without labels, and
to say the same of the image and of its quarter turn.

Deviations: those of RFS. The authors' code divides the weight of the second by 3.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.baselines.baseline import Fitted
from lightning_meta.algorithms.baselines.born_again import divergence
from lightning_meta.algorithms.baselines.rfs import RFS
from lightning_meta.algorithms.baselines.s2m2 import TURNS, in_turns, turn_of_each
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Episode, TaskOutput
from lightning_meta.errors import ConfigError
from lightning_meta.modules import TaughtModule


class SKD(TaughtModule[Fitted], RFS):
    """Generation zero without a teacher, generation one with it. For square images.

    Args:
        backbone, n_classes, teacher: of `TaughtModule`.
        temperature: of the distillation.
        turn_weight: in generation zero, of the loss of turns (the code's gamma).
        twin_weight: in generation one, of the distance between the logits of an image and its quarter turn (beta).
        **kwargs: of `RFS`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        teacher: str | None = None,
        temperature: float = 2.0,
        turn_weight: float = 2.0,
        twin_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, teacher, **kwargs)
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature} must be positive.")
        self.temperature, self.turn_weight, self.twin_weight = temperature, turn_weight, twin_weight
        self.turns: nn.Linear | None = None
        self._make_turns()

    def _make_turns(self) -> None:
        """As soon as the number of classes is known, in generation zero."""
        if self.turns is None and self.classifier is not None and self.teacher is None:
            self.turns = nn.Linear(self.classifier.out_features, TURNS, device=self.device, dtype=self.dtype)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._make_turns()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.another(checkpoint):
            self.turns = None
        super().on_load_checkpoint(checkpoint)
        self._make_turns()

    def on_fit_start(self) -> None:
        """A training that does not go on starts from the teacher."""
        super().on_fit_start()
        if self.is_taught and not self.trainer.ckpt_path:
            for own, theirs in zip((self.backbone, self.trained_classifier), self._teacher[0], strict=True):
                own.load_state_dict(theirs.state_dict())

    def taught(self, images_TB: Tensor) -> Tensor:
        """Of images as they are, which are the first half, and the same of their turns."""
        return super().taught(images_TB.chunk(2, dim=1)[0]).repeat(1, 2, 1)

    def play(self, tasks: Episode) -> TaskOutput:
        """In training on turns of the images too. Predictions are those of the images as they are."""
        if not self.training:
            return super().play(tasks)
        turns = 2 if self.is_taught else TURNS
        out = super().play(Episode(*(Batch(in_turns(x, turns), y.repeat(1, turns)) for x, y in tasks)))
        return out._replace(preds=out.preds[:, : tasks.query.y.shape[1]])

    def head_loss(self, head: Any, query: Batch) -> TaskOutput:
        if not self.training:
            return super().head_loss(head, query)
        return self.generation_one(head, query) if self.is_taught else self.generation_zero(head, query)

    def generation_zero(self, support: Batch, query: Batch) -> TaskOutput:
        assert self.turns is not None
        logits_BC = self.class_logits(torch.cat([support.x, query.x]))
        named = self.naming_loss(logits_BC, torch.cat([support.y, query.y]))
        is_turn_B4 = F.one_hot(torch.cat([turn_of_each(support.y), turn_of_each(query.y)]), TURNS)
        turn = F.binary_cross_entropy_with_logits(self.turns(logits_BC), is_turn_B4.to(logits_BC.dtype))
        loss = named + self.turn_weight * turn
        return TaskOutput(loss, logits_BC[len(support.y) :], {"turn_loss": turn.detach()})

    def generation_one(self, support: Batch, query: Batch) -> TaskOutput:
        own, turned = (torch.cat(half) for half in zip(support.x.chunk(2), query.x.chunk(2), strict=True))
        features_BD, taught_BC = self.parted(own)
        logits_BC, twins_BC = self.class_logits(features_BD), self.class_logits(self.parted(turned)[0])
        distilled = divergence(logits_BC, taught_BC, self.temperature)
        twin = torch.linalg.vector_norm(logits_BC - twins_BC, dim=1).mean()
        logs = {"distilled": distilled.detach(), "twin_loss": twin.detach()}
        return TaskOutput(distilled + self.twin_weight * twin, logits_BC[len(support.y) // 2 :], logs)
