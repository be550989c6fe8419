"""Meta Pseudo Labels: a teacher that labels examples so that a student who learns from them names others well.

Pham, Dai, Xie, Luong, Le: "Meta Pseudo Labels" (2021), arXiv:2003.10580.

The inner training is the student's, on unlabelled examples with the teacher's labels; the outer variables are the
teacher. It learns from how well the student does after a step on the labelled examples, which the student never sees,
and from these examples themselves. The labels of the inner batches are not read.

With `hypergradient: FirstOrder` the student tells the teacher nothing: ordinary pseudo labels. With `consistency: 0` as
well, `teacher_acc` is what supervision alone comes to.

Deviations: the labels are the teacher's probabilities, through which the step is differentiated exactly; the paper
draws a class and estimates the same by a score function. The teacher's loss on unlabelled examples (in the paper UDA,
with RandAugment) is consistency under normal noise. The student has no last training on the labelled examples.
"""

from copy import deepcopy
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.core.dice import normal
from lightning_meta.datamodules.bilevel.trials import Trial
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule


class MetaPseudoLabels(BilevelModule):
    """A teacher network, learned through the student that it teaches.

    Logs `teacher_acc`, how well the teacher does by itself.

    Args:
        backbone, n_classes: of `BilevelModule`; the teacher's network is like the student's.
        temperature: of the teacher's probabilities; below 1, they are sharpened.
        consistency: how much it counts that the teacher says the same of an unlabelled example under noise.
        noise: its standard deviation, on the inputs.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        temperature: float = 1.0,
        consistency: float = 3.0,
        noise: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if not temperature > 0 or consistency < 0 or noise < 0:
            raise ConfigError(
                f"temperature={temperature} must be positive, consistency={consistency} and noise={noise} not negative."
            )
        self.temperature, self.consistency, self.noise = temperature, consistency, noise
        # Its weights are those of the backbone that was given; a student's are drawn by the key of its training.
        self.teacher = deepcopy(self.network).requires_grad_(True)

    def pseudo_labels(self, x: Tensor) -> Tensor:
        """What the teacher says of unlabelled examples: probabilities `(B, C)`."""
        return (self.teacher(x) / self.temperature).softmax(1)

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(weights, batch.x), self.pseudo_labels(batch.x))

    def query_loss(self, weights: Params, query: Batch) -> TaskOutput:
        student = super().query_loss(weights, query)
        scores_QC = self.teacher(query.x)
        right = (scores_QC.argmax(1) == query.y).to(scores_QC.dtype).mean()
        loss = student.loss + F.cross_entropy(scores_QC, query.y)
        return TaskOutput(loss, student.preds, {"teacher_acc": right})

    def inconsistency(self, support: Batch, dice_S: Tensor) -> Tensor:
        """How far the teacher's words on unlabelled examples change under noise, mean over those of S steps."""
        x = support.x.flatten(0, 1)
        said_BC = (self.teacher(x) / self.temperature).log_softmax(1).detach()
        then_BC = self.teacher(x + self.noise * normal(dice_S[0], *x.shape, dtype=x.dtype)).log_softmax(1)
        return (said_BC.exp() * (said_BC - then_BC)).sum(1).mean()  # vmap has no rule for F.kl_div

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        values, others = super().measure(tasks)
        if self.training and self.consistency:
            loss = values["loss"] + self.consistency * self._map(self.inconsistency, tasks, tasks.support, tasks.dice)
            values = {**values, "loss": loss}
        return values, others
