"""Born-again RFS: a network learns to name classes from the labels and from a network that has learned it before.

Tian, Wang, Krishnan, Tenenbaum, Isola: "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?"
(2020), arXiv:2003.11539, section 3.3, after Furlanello et al. (2018), arXiv:1805.04770.

The loss is a weighted sum of the cross-entropy and of the divergence from the teacher's class probabilities, both
softened by a temperature, whose square makes up for the smaller gradient (Hinton et al. 2015, arXiv:1503.02531). The
student, whose turn it is, can be the teacher of the next generation.

Deviations: those of RFS.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.algorithms.baselines.baseline import Fitted
from lightning_meta.algorithms.baselines.rfs import RFS
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.errors import ConfigError
from lightning_meta.modules import TaughtModule


class BornAgain(TaughtModule[Fitted], RFS):
    """RFS with a teacher, or RFS without one.

    Args:
        backbone, n_classes, teacher: of `TaughtModule`.
        temperature: of both sets of class probabilities.
        naming_weight, teacher_weight: of the cross-entropy and of the divergence (the paper's alpha and beta).
        **kwargs: of `RFS`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        teacher: str | None = None,
        temperature: float = 4.0,
        naming_weight: float = 0.5,
        teacher_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, teacher, **kwargs)
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature} must be positive.")
        self.temperature, self.naming_weight, self.teacher_weight = temperature, naming_weight, teacher_weight

    def head_loss(self, head: Any, query: Batch) -> TaskOutput:
        if not self.training or not self.is_taught:
            return super().head_loss(head, query)
        features_BD, taught_BC = self.parted(torch.cat([head.x, query.x]))
        logits_BC = self.class_logits(features_BD)
        named = self.naming_loss(logits_BC, torch.cat([head.y, query.y]))
        distilled = divergence(logits_BC, taught_BC, self.temperature)
        loss = self.naming_weight * named + self.teacher_weight * distilled
        return TaskOutput(loss, logits_BC[len(head.y) :], {"distilled": distilled.detach()})


def divergence(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler, of the student's class probabilities from the teacher's, times the temperature squared."""
    ours, theirs = ((logits / temperature).log_softmax(-1) for logits in (student_BC, teacher_BC))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1).mean()
