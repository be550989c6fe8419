"""Online MAML: the inner loop sees one example after another, each once.

The inner loop of Javed, White: "Meta-Learning Representations for Continual Learning" (2019), arXiv:1905.12588, with
all weights of the network; as a way to learn a task while it comes in, also Finn, Rajeswaran, Kakade, Levine: "Online
Meta-Learning" (2019), arXiv:1902.08438.

Deviations: those of MAML.
"""

from functools import partial

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import support_statistics
from lightning_meta.core import Batch, Params, unroll
from lightning_meta.core.inner_loop import LossFn
from lightning_meta.modules import StreamModule


class Online(MAML, StreamModule[Params]):
    """MAML with `inner_steps` steps on each support example alone, in a random order that belongs to the episode.

    Same arguments as `MAML`. Normalisation by a batch would be by a single image: take a backbone without
    (`Conv4(norm=None)`).
    """

    def adapt(self, support: Batch) -> Params:
        phi = self.stream([partial(self.loss, batch=one) for one in one_by_one(support)])
        return phi | support_statistics(self.learner, phi, support.x)

    def stream(self, losses: list[LossFn]) -> Params:
        """The weights after the steps on each example's loss, in this order."""
        repeated = [loss for loss in losses for _ in range(self.steps)]
        return unroll(repeated, self.theta(), self.inner_optimizer, len(repeated), self.first_order)


def one_by_one(support: Batch) -> list[Batch]:
    """Batches of one example each, in their order."""
    return [Batch(x[None], y[None]) for x, y in zip(*support, strict=True)]
