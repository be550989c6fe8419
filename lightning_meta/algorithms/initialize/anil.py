"""ANIL: almost no inner loop. Only the head adapts to a task; its features are those of the meta-learned body.

Raghu, Raghu, Bengio, Vinyals: "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML"
(2020), arXiv:1909.09157.

Deviations: those of MAML.
"""

from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import support_statistics
from lightning_meta.core import Batch, Params, trainable, unroll


class ANIL(MAML):
    """MAML whose inner loop moves the head alone, so the features of the support set are computed once.

    Same arguments as `MAML`.
    """

    @property
    def head(self) -> nn.Module:
        return self.learner[1]

    def theta(self) -> Params:
        return {f"1.{name}": value for name, value in trainable(self.head).items()}

    def adapt(self, support: Batch) -> Params:
        features_SD = self.backbone(support.x)

        def head_loss(params: Params) -> Tensor:
            logits = functional_call(self.head, {name.removeprefix("1."): p for name, p in params.items()}, features_SD)
            return self.loss_fn(logits, support.y)

        phi = unroll(head_loss, self.theta(), self.inner_optimizer, self.steps, self.first_order)
        return phi | support_statistics(self.learner, phi, support.x)
